"""Writes the bundle `blocks`: python make.py (needs onnx and numpy; nothing is random or trained).

It stands for a foreign autoencoder without entropy tables, so files made with it go through the universal coder. The
analysis takes 8x8 blocks to low frequencies of a Walsh-Hadamard transform (6 of luma, 3 each of two colour differences).
The synthesis rounds its input and goes on in integers that float32 holds exactly, with a 3x3 convolution on the latent (so
it has a margin of one position), a 1x1 convolution to 8x8 pixels, a shift and a clip: the same bytes from every engine.
"""

import os

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper as H
from onnx import numpy_helper as N

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "blocks")
OPSET, IR = 21, 10
SIDE = 8
# Sequencies (vertical, horizontal) of the channels of each colour component.
LUMA = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0)]
DIFFERENCE = [(0, 0), (0, 1), (1, 0)]
# Luma and differences (green - red, green - blue) as integers; RGB = LUMA_TO_RGB and DIFFERENCES_TO_RGB, over 4.
TO_COMPONENTS = np.array([[1, 2, 1], [-1, 1, 0], [0, 1, -1]], np.float64) / [[4], [1], [1]]
TO_RGB = np.array([[4, -3, 1], [4, 1, 1], [4, 1, -3]], np.float64) / 4


def walsh():
    """The Walsh functions of 8 samples, by number of sign changes."""
    rows = np.array([[1]])
    while len(rows) < SIDE:
        rows = np.block([[rows, rows], [rows, -rows]])
    return rows[np.argsort([(np.diff(row) != 0).sum() for row in rows])]


def save(name, nodes, inputs, outputs, constants):
    values = [N.from_array(np.asarray(value), key) for key, value in constants.items()]
    info = [[H.make_tensor_value_info(*port) for port in ports] for ports in (inputs, outputs)]
    graph = H.make_graph(nodes, name, *info, values)
    model = H.make_model(graph, opset_imports=[H.make_opsetid("", OPSET)], ir_version=IR)
    onnx.checker.check_model(model)
    onnx.save(model, os.path.join(HERE, name + ".onnx"))


def main():
    os.makedirs(HERE, exist_ok=True)
    functions = walsh()
    assert np.allclose(TO_RGB @ TO_COMPONENTS, np.eye(3))
    channels = [(0, s) for s in LUMA] + [(1, s) for s in DIFFERENCE] + [(2, s) for s in DIFFERENCE]
    count = len(channels)

    # Analysis: pixels 0 to 255, minus 128; coefficients are means over the block.
    kernel = np.zeros((count, 3, SIDE, SIDE))
    for at, (component, (v, u)) in enumerate(channels):
        pattern = np.outer(functions[v], functions[u]) / SIDE**2
        kernel[at] = TO_COMPONENTS[component][:, None, None] * pattern
    nodes = [
        H.make_node("Sub", ["pixels", "middle"], ["centred"]),
        H.make_node("Conv", ["centred", "kernel"], ["latent"], kernel_shape=[SIDE] * 2, strides=[SIDE] * 2),
    ]
    save("analysis", nodes, [("pixels", T.FLOAT, [1, 3, "H", "W"])], [("latent", T.FLOAT, [1, count, "h", "w"])],
         {"kernel": kernel.astype(np.float32), "middle": np.float32(128)})  # fmt: skip

    # Synthesis: the latent in 1/4 steps, rounded. Smoothing of the means, in 1/16: it takes the edge off the blocks.
    smooth = np.zeros((count, 1, 3, 3))
    for at, (_, sequency) in enumerate(channels):
        smooth[at, 0, 1, 1] = 16
        if sequency == (0, 0):
            smooth[at, 0] = [[0, 1, 0], [1, 12, 1], [0, 1, 0]]
    # (8 * 8 * 3, channels): rows in the order that `packing` has, (dy * 8 + dx) * 3 + c; the divisor 4 of TO_RGB is in
    # the shift.
    paint = np.zeros((3 * SIDE * SIDE, count))
    for at, (component, (v, u)) in enumerate(channels):
        pattern = np.outer(functions[v], functions[u]).reshape(-1)
        for c in range(3):
            paint[c::3, at] = 4 * TO_RGB[c, component] * pattern
    node = H.make_node
    nodes = [
        node("Mul", ["latent", "four"], ["finer"]),
        node("Round", ["finer"], ["rounded"]),
        node("Clip", ["rounded", "low", "high"], ["integers"]),
        node("Conv", ["integers", "smooth"], ["smoothed"], kernel_shape=[3, 3], pads=[1] * 4, group=count),
        node("Conv", ["smoothed", "paint"], ["painted"], kernel_shape=[1, 1]),
        # 4 of the latent's steps, 16 of the smoothing, 4 of the colours.
        node("Mul", ["painted", "shift"], ["scaled"]),
        node("Round", ["scaled"], ["levels"]),
        node("Add", ["levels", "middle"], ["shifted"]),
        node("Clip", ["shifted", "black", "white"], ["clipped"]),
        node("Cast", ["clipped"], ["bytes"], to=T.UINT8),
        node("Transpose", ["bytes"], ["pixels"], perm=[0, 2, 3, 1]),
    ]
    constants = {
        "four": np.float32(4), "low": np.float32(-2048), "high": np.float32(2047), "shift": np.float32(1 / 256),
        "smooth": smooth.astype(np.float32), "paint": paint.astype(np.float32).reshape(*paint.shape, 1, 1),
        "middle": np.float32(128), "black": np.float32(0), "white": np.float32(255),
    }  # fmt: skip
    save("synthesis", nodes, [("latent", T.FLOAT, [1, count, "h", "w"])],
         [("pixels", T.UINT8, [1, "h", "w", 3 * SIDE**2])], constants)  # fmt: skip

    scale = ", ".join(["1.0"] * len(LUMA) + ["0.5"] * (2 * len(DIFFERENCE)))
    with open(os.path.join(HERE, "bundle.toml"), "w", newline="\n") as out:
        out.write(f'''format = 1
name = "blocks"
version = "1"
licence = "MIT OR Apache-2.0"
source = "tests/bundles/make.py"

[latent]
channels = {count}
stride = {SIDE}
scale = [{scale}]
shift = 0.5
step = 6.0

[pixels]
range = [0.0, 255.0]
packing = {SIDE}
exact = true

[tiling]
margin = 1

[graphs.analysis]
file = "analysis.onnx"

[graphs.synthesis]
file = "synthesis.onnx"
''')


main()
