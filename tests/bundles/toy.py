"""Writes the graphs in `toy`: python toy.py (needs onnx and numpy; nothing is random or trained).

The parts of a model whose latent is the picture itself (3 channels, stride 1), so that a test sees what happens to the latent. tests/denoising.rs puts
them together, and trains the denoiser: `table` is one 3x3 matrix for each timestep, applied to every position.
"""

import os

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper as H
from onnx import numpy_helper as N

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "toy")
OPSET, IR = 21, 10
PICTURE = [1, 3, "h", "w"]


def save(name, nodes, inputs, output, constants):
    values = [N.from_array(np.asarray(value), key) for key, value in constants.items()]
    info = [[H.make_tensor_value_info(*port) for port in ports] for ports in (inputs, [(output, T.FLOAT, PICTURE)])]
    model = H.make_model(H.make_graph(nodes, name, *info, values), opset_imports=[H.make_opsetid("", OPSET)], ir_version=IR)
    onnx.checker.check_model(model)
    onnx.save(model, os.path.join(HERE, name + ".onnx"))


def main():
    os.makedirs(HERE, exist_ok=True)
    node = H.make_node
    save("identity", [node("Identity", ["x"], ["y"])], [("x", T.FLOAT, PICTURE)], "y", {})
    # Sees its whole input, as attention does: takes the mean of it away.
    save("centred", [node("GlobalAveragePool", ["x"], ["mean"]), node("Sub", ["x", "mean"], ["y"])], [("x", T.FLOAT, PICTURE)], "y", {})
    nodes = [
        node("Gather", ["table", "timestep"], ["matrix"], axis=0),
        node("Reshape", ["matrix", "shape"], ["weights"]),
        node("Conv", ["sample", "weights"], ["prediction"], kernel_shape=[1, 1]),
    ]
    inputs = [("sample", T.FLOAT, PICTURE), ("timestep", T.INT64, [1]), ("table", T.FLOAT, ["steps", 3, 3])]
    save("denoiser", nodes, inputs, "prediction", {"shape": np.array([3, 3, 1, 1])})


main()
