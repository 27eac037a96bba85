"""Makes the graphs of these tests: python make.py (needs onnx and numpy; nothing is random).

The numbers of integer_decoder.onnx come from the generator below, which tests/engines.rs has too, so that the reference
there needs no file of weights.
"""

import os

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper as H
from onnx import numpy_helper as N

HERE = os.path.dirname(os.path.abspath(__file__))
OPSET, IR = 21, 10


class Numbers:
    """The linear congruential generator of Numerical Recipes."""

    def __init__(self, seed):
        self.state = seed

    def between(self, low, high):
        self.state = (self.state * 1664525 + 1013904223) % 2**32
        return low + (self.state >> 16) % (high - low + 1)


def save(name, nodes, inputs, outputs, constants, external=None):
    values = [N.from_array(np.asarray(value), key) for key, value in constants.items()]
    info = [[H.make_tensor_value_info(*port) for port in ports] for ports in (inputs, outputs)]
    model = H.make_model(
        H.make_graph(nodes, name, *info, values), opset_imports=[H.make_opsetid("", OPSET)], ir_version=IR
    )
    onnx.checker.check_model(model)
    path = os.path.join(HERE, name + ".onnx")
    if external:
        data = os.path.join(HERE, external)
        if os.path.exists(data):
            os.remove(data)
        onnx.save(model, path, save_as_external_data=True, all_tensors_to_one_file=True, location=external,
                  size_threshold=0)
    else:
        onnx.save(model, path)


def integer_layer(nodes, constants, numbers, name, source, channels, kernel, group, zero_in, zero_out):
    """Conv in QDQ form: 7-bit weights, power-of-two scales per channel. tests/engines.rs: `Layer`."""
    inputs, outputs = channels
    shape = (outputs, inputs // group, kernel, kernel)
    weights = np.array([numbers.between(-64, 64) for _ in range(np.prod(shape))], np.int8).reshape(shape)
    shifts = [6 + numbers.between(0, 2) for _ in range(outputs)]
    bias = np.array([numbers.between(-3000, 3000) for _ in range(outputs)], np.int32)
    scales = (2.0 ** -np.array(shifts)).astype(np.float32)
    constants |= {
        f"{name}_zi": np.uint8(zero_in), f"{name}_zo": np.uint8(zero_out), f"{name}_so": np.float32(1),
        f"{name}_w": weights, f"{name}_ws": scales, f"{name}_wz": np.zeros(outputs, np.int8),
        f"{name}_b": bias, f"{name}_bz": np.zeros(outputs, np.int32), "one": np.float32(1),
    }  # fmt: skip
    node = H.make_node
    nodes += [
        node("DequantizeLinear", [source, "one", f"{name}_zi"], [f"{name}_xf"]),
        node("DequantizeLinear", [f"{name}_w", f"{name}_ws", f"{name}_wz"], [f"{name}_wf"], axis=0),
        node("DequantizeLinear", [f"{name}_b", f"{name}_ws", f"{name}_bz"], [f"{name}_bf"], axis=0),
        node("Conv", [f"{name}_xf", f"{name}_wf", f"{name}_bf"], [f"{name}_cf"], kernel_shape=[kernel] * 2,
             pads=[kernel // 2] * 4, group=group),
        node("QuantizeLinear", [f"{name}_cf", f"{name}_so", f"{name}_zo"], [f"{name}_q"]),
    ]  # fmt: skip
    return f"{name}_q"


def integer_decoder():
    """uint8 latent with zero point 128 to uint8 pixels of twice the size."""
    nodes, constants, numbers = [], {}, Numbers(1)
    node = H.make_node
    a = integer_layer(nodes, constants, numbers, "a", "latent", (16, 24), 1, 1, 128, 0)
    b = integer_layer(nodes, constants, numbers, "b", a, (24, 24), 3, 24, 0, 128)
    c = integer_layer(nodes, constants, numbers, "c", b, (24, 24), 5, 24, 128, 128)
    d = integer_layer(nodes, constants, numbers, "d", c, (24, 24), 1, 4, 128, 128)
    e = integer_layer(nodes, constants, numbers, "e", d, (24, 12), 1, 1, 128, 128)
    constants |= {"z128": np.uint8(128)}
    nodes += [
        node("DequantizeLinear", [e, "one", "z128"], ["ef"]),
        node("DepthToSpace", ["ef"], ["pf"], blocksize=2, mode="CRD"),
        node("QuantizeLinear", ["pf", "one", "z128"], ["pixels"]),
    ]
    save("integer_decoder", nodes, [("latent", T.UINT8, [1, 16, "h", "w"])],
         [("pixels", T.UINT8, [1, 3, "2h", "2w"])], constants)  # fmt: skip


def operators():
    """The float operators that exported decoders use, on integers that float32 holds exactly."""
    numbers = Numbers(2)
    grouped = np.array([numbers.between(-8, 8) for _ in range(8 * 2 * 9)], np.float32).reshape(8, 2, 3, 3)
    point = np.array([numbers.between(-8, 8) for _ in range(8 * 8)], np.float32).reshape(8, 8, 1, 1)
    node = H.make_node
    nodes = [
        node("Conv", ["x", "grouped"], ["a"], kernel_shape=[3, 3], pads=[1] * 4, group=4),
        node("Conv", ["a", "point"], ["b"], kernel_shape=[1, 1]),
        node("Mul", ["b", "eighth"], ["c"]),
        node("Round", ["c"], ["d"]),
        node("Clip", ["d", "low", "high"], ["e"]),
        node("Add", ["e", "x"], ["f"]),
        node("Relu", ["f"], ["g"]),
        node("Concat", ["f", "g"], ["h"], axis=1),
        node("Slice", ["h", "from", "to", "axis"], ["i"]),
        node("DepthToSpace", ["i"], ["wide"], blocksize=2, mode="DCR"),
        node("Reshape", ["i", "split"], ["j"]),
        node("Transpose", ["j"], ["turned"], perm=[0, 2, 1, 3]),
        node("Clip", ["g", "zero", "byte"], ["k"]),
        node("Cast", ["k"], ["bytes"], to=T.UINT8),
    ]
    constants = {
        "grouped": grouped, "point": point, "eighth": np.float32(1 / 8), "low": np.float32(-2048),
        "high": np.float32(2047), "from": np.array([2]), "to": np.array([10]), "axis": np.array([1]),
        "split": np.array([0, 2, 4, -1]), "zero": np.float32(0), "byte": np.float32(255),
    }  # fmt: skip
    save("operators", nodes, [("x", T.FLOAT, [1, 8, "h", "w"])],
         [("wide", T.FLOAT, [1, 2, "2h", "2w"]), ("turned", T.FLOAT, [1, 4, 2, "n"]),
          ("bytes", T.UINT8, [1, 8, "h", "w"])], constants)  # fmt: skip


def rounding():
    """QuantizeLinear and Round of the same numbers."""
    nodes = [
        H.make_node("QuantizeLinear", ["x", "one", "zero"], ["quantised"]),
        H.make_node("Round", ["x"], ["rounded"]),
    ]
    save("rounding", nodes, [("x", T.FLOAT, ["n"])], [("quantised", T.UINT8, ["n"]), ("rounded", T.FLOAT, ["n"])],
         {"one": np.float32(1), "zero": np.uint8(128)})  # fmt: skip


def denoiser():
    """Stands for a diffusion model: a 64-bit timestep, a constant, two inputs of rank four."""
    nodes = [
        H.make_node("Cast", ["timestep"], ["t"], to=T.FLOAT),
        H.make_node("Mul", ["sample", "t"], ["a"]),
        H.make_node("Add", ["a", "embedding"], ["prediction"]),
    ]
    save("denoiser", nodes,
         [("timestep", T.INT64, [1]), ("sample", T.FLOAT, [1, 2, "h", "w"]), ("embedding", T.FLOAT, [1, 1, 1, 1])],
         [("prediction", T.FLOAT, [1, 2, "h", "w"])], {})  # fmt: skip


def with_external_data():
    """Weights in a file of their own."""
    numbers = Numbers(3)
    weights = np.array([numbers.between(-8, 8) for _ in range(4 * 4)], np.float32).reshape(4, 4, 1, 1)
    save("external", [H.make_node("Conv", ["x", "weights"], ["y"], kernel_shape=[1, 1])],
         [("x", T.FLOAT, [1, 4, "h", "w"])], [("y", T.FLOAT, [1, 4, "h", "w"])], {"weights": weights},
         external="external.onnx.data")  # fmt: skip


if __name__ == "__main__":
    integer_decoder()
    operators()
    rounding()
    denoiser()
    with_external_data()
