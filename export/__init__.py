"""On a workstation: a trained checkpoint to a verified, quantized bundle."""
