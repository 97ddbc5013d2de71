"""A traced part in float16, but for its norms and what goes from part to part.

ONNX Runtime's own converter needs the types of all values, which ONNX does not infer through the operators of ONNX
Runtime, and casts everything that stays float32 to float16 and back.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_FLOAT, _HALF = TensorProto.FLOAT, TensorProto.FLOAT16
_ATTENTION = "GroupQueryAttention"
# These only move values, and are of their type.
_MOVES = ("Identity", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Slice", "Gather", "Flatten")


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights and products in float16.

    Sums over layers, which leave float16's range in Qwen2.5-VL, and their norms stay float32, and so do inputs and
    outputs; but for cache and rotary tables, which must be of the attention's type.
    """
    graph = model.graph
    attention = [node for node in graph.node if node.op_type == _ATTENTION]
    half_ends = {name for node in attention for name in (*node.input, *node.output)}
    kinds: dict[str, int] = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.output):
        tensor_type = value.type.tensor_type
        if tensor_type.elem_type == _FLOAT and value.name in half_ends:
            tensor_type.elem_type = _HALF
        kinds[value.name] = tensor_type.elem_type
    weights = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    prefix = graph.output[-1].name
    nodes: list[onnx.NodeProto] = []
    casts: dict[tuple[str, int], str] = {}

    def cast(name: str, kind: int) -> str:
        """`name`, a float, as a tensor of type `kind`."""
        if kinds[name] == kind or kinds[name] not in (_FLOAT, _HALF):
            return name
        if (name, kind) not in casts:
            casts[name, kind] = new = f"{prefix}.cast.{name}"
            if name in weights:
                array = numpy_helper.to_array(weights[name])
                graph.initializer.append(
                    numpy_helper.from_array(array.astype(helper.tensor_dtype_to_np_dtype(kind)), new)
                )
            else:
                nodes.append(helper.make_node("Cast", [name], [new], name=new, to=kind))
        return casts[name, kind]

    for node in graph.node:
        wide = node.op_type == "SkipSimplifiedLayerNormalization" or "/norm" in node.name
        kind: int = _FLOAT if wide else _HALF
        if node.op_type in _MOVES:
            kind = kinds[node.input[0]]
        if node.op_type == "Constant":
            tensor = node.attribute[0].t
            if tensor.data_type == _FLOAT and not wide:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16)))
            made = tensor.data_type
        else:
            node.input[:] = [cast(name, kind) if name else "" for name in node.input]
            made = _made(node, kinds.get(node.input[0], kind), kind)
        nodes.append(node)
        for i, name in enumerate(node.output):
            if name in outputs and kinds[name] != made:
                node.output[i] = f"{prefix}.{made}.{name}"
                nodes.append(
                    helper.make_node("Cast", [node.output[i]], [name], name=f"{prefix}.to.{name}", to=kinds[name])
                )
                kinds[node.output[i]] = made
            else:
                kinds[name] = made
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)
    return model


def _made(node: onnx.NodeProto, first: int, kind: int) -> int:
    """The type of a node's outputs, given its first input's and the node's own for floats."""
    if node.op_type == "Shape":
        return int(TensorProto.INT64)
    if node.op_type == "Cast":
        to = helper.get_node_attr_value(node, "to")
        if to == _FLOAT and kind == _HALF:
            next(attribute for attribute in node.attribute if attribute.name == "to").i = to = _HALF
        return int(to)
    return first if first not in (_FLOAT, _HALF) else kind
