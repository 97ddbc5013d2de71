"""A loaded model bundle: encode an image, prefill, step."""
