"""C++ that earns its place by measurement (built by CMakeLists.txt)."""

from edge.native._native import preprocess

__all__ = ["preprocess"]
