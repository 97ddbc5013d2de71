"""The engine that runs a bundle's ``tensorrt`` graphs on an NVIDIA GPU, and the building of what it runs."""
