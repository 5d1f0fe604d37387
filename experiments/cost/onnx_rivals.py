"""The same networks in ONNX Runtime, for comparison if it is installed."""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

NEEDED = "onnx", "onnxruntime"


def available() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in NEEDED)


def make_logits(
    layers: Sequence[Any], white: int, images: np.ndarray
) -> Callable[[], Any]:
    """Returns the function that computes the logits `[B, K]` of uint8 images.

    Layers are those of `matrices`: matrices `[outputs, inputs]`, biases, the windows of
    convolutions, and the inputs that the first matrix reads, or None for all.
    """
    onnx, runtime = (importlib.import_module(name) for name in NEEDED)
    helper, kinds = onnx.helper, onnx.TensorProto
    nodes, arrays = [], []

    def constant(array: Any) -> str:
        name = f"constant{len(arrays)}"
        arrays.append(onnx.numpy_helper.from_array(np.asarray(array), name))
        return name

    def add(kind: str, *inputs: str, **settings: Any) -> str:
        name = f"{kind}{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [name], **settings))
        return name

    x = add("Cast", "images", to=kinds.FLOAT)
    x = add("Div", x, constant(np.float32(white)))
    before = None  # the window of the layer before
    for index, layer in enumerate(layers):
        matrix, bias = (np.ascontiguousarray(layer[i]) for i in (0, 1))
        if index:
            x = add("Relu", x)
        if layer.window is not None:
            size = layer.window
            if not index:  # channels come first
                x = add("Transpose", x, perm=[0, 3, 1, 2])
            kernel = matrix.reshape(len(matrix), size, size, -1).transpose(0, 3, 1, 2)
            x = add("Conv", x, constant(kernel.copy()), constant(bias[:, 0]))
            x = add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        else:
            if before is not None:
                x = add("Transpose", x, perm=[0, 2, 3, 1])
            x = add("Flatten", x)
            if layer.inputs is not None:
                x = add("Gather", x, constant(layer.inputs.astype(np.int64)), axis=1)
            x = add("Gemm", x, constant(matrix), constant(bias[:, 0]), transB=1)
        before = layer.window
    given = helper.make_tensor_value_info("images", kinds.UINT8, images.shape)
    found = helper.make_tensor_value_info(x, kinds.FLOAT, None)
    graph = helper.make_graph(nodes, "network", [given], [found], arrays)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"images": images})[0]
