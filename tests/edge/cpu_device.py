"""ONNX Runtime in place of a GPU: what `vlar1 export` verifies graphs for TensorRT with, by the name tests know."""

from export.cpu_device import CpuDevice, CpuProgram

__all__ = ["CpuDevice", "CpuProgram"]
