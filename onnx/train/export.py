"""Turns a checkpoint of train.py into a bundle folder: fits the tables, writes the graphs, proves that they are exact.

    python export.py --checkpoint /tmp/run/weights.pt --images ../../../shared/images/train --generation 8 --out /tmp/sdl-8

With `--natural` the decoder that natural.py trained goes in as well, with `--correction` what correction.py did. With `--bundle`, for a generation
whose files are about, tables and pixels stay what they are, and the encoder may be another one, as `train.py --decoder` leaves it:

    python export.py --checkpoint ../models/sdl-7.pt --bundle ../models/sdl-7.sdlm --natural ../models/sdl-7-natural.pt \
        --correction ../models/sdl-7-correction.pt --images ../../../shared/images/train --out /tmp/sdl-7
"""

import argparse
import pathlib
import shutil
import tempfile
import zipfile

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

import data
import quant
import tables
from model import HYPER_CLIP, HYPER_UNIT, LATENT_CLIP, LATENT_UNIT, MEAN_UNIT, load, load_correction, load_natural


DIGIT = 128  # weights of two digits are high * DIGIT + low, each of 7 bits


def digits(q):
    """Integers as (high, low)."""
    high = (q + quant.WEIGHT_MAX) // DIGIT
    return high, q - DIGIT * high


def integers(w, most):
    """A float weight as integers up to `most`, and a power of two for each output channel."""
    scale = np.exp2(np.ceil(np.log2(np.maximum(np.abs(w).reshape(len(w), -1).max(1), 1e-12) / most)))
    return np.rint(w / scale.reshape(-1, 1, 1, 1)).astype(np.int64), scale


class Builder:
    """Writes ONNX nodes one by one. Quantised tensors pass through QuantizeLinear and DequantizeLinear pairs, which
    ONNX Runtime fuses with the convolution between them into integer kernels."""

    def __init__(self, name):
        self.name, self.nodes, self.constants, self.count = name, [], [], 0

    def fresh(self, hint):
        self.count += 1
        return f"{hint}_{self.count}"

    def constant(self, value, hint="c"):
        name = self.fresh(hint)
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, op, inputs, **attributes):
        name = self.fresh(op.lower())
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def activation(self, x, act, arrange=lambda x: x):
        """Quantise and dequantise: with zero point 0 this is the ReLU as well. `arrange` moves the bytes between the two."""
        scale = self.constant(np.float32(act.scale.item()), "scale")
        zero = self.constant(np.uint8(act.zero_point), "zero")
        return self.node("DequantizeLinear", [arrange(self.node("QuantizeLinear", [x, scale, zero])), scale, zero])

    def channels_last(self, x):
        return self.node("Transpose", [x], perm=[0, 2, 3, 1])

    def channels_first(self, x):
        return self.node("Transpose", [x], perm=[0, 3, 1, 2])

    def to_stream(self, x):
        """(1, C, H, W) to (1, H W, C): the order of the integer kernels. With the grid out of sight ONNX Runtime does not
        move these transposes about, and each vanishes in that of the kernel beside it."""
        return self.node("Reshape", [self.channels_last(x), self.constant(np.array([0, -1, self.stream_channels], np.int64))])

    def begin_stream(self, x, channels):
        """(1, C, H, W): what `to_grid` will bring streams back to."""
        self.grid, self.stream_channels = self.node("Shape", [self.channels_last(x)]), channels
        return self.to_stream(x)

    def to_grid(self, x):
        return self.channels_first(self.node("Reshape", [x, self.grid]))

    def depth_to_space(self, x, size, channels):
        """(1, H, W, size size C) to (1, H size, W size, C), for bytes, of which not every runtime has a DepthToSpace."""
        shape = self.node("Shape", [x])
        height, width = (self.node("Slice", [shape, *(self.constant(np.array([v], np.int64)) for v in (i, i + 1))]) for i in (1, 2))
        number = lambda *v: self.constant(np.array(v, np.int64))
        x = self.node("Reshape", [x, self.node("Concat", [height, width, number(size, size, channels)], axis=0)])
        x = self.node("Transpose", [x], perm=[0, 2, 1, 3, 4])
        return self.node("Reshape", [x, self.node("Concat", [number(1), self.node("Mul", [height, number(size)]), self.node("Mul", [width, number(size)]), number(channels)], axis=0)])

    def weights(self, conv):
        """(integers, scale float32 for each output channel)"""
        scale = conv.weight_scale()
        q = torch.round(conv.weight.detach().float() / scale.view(-1, 1, 1, 1)).numpy()
        return q.astype(np.int64), scale.numpy().astype(np.float32)

    def conv8(self, x, conv, input_scale, order=slice(None), factor=1.0, patch=1):
        """8-bit input of scale `input_scale`: weights and bias as integers behind DequantizeLinear, weights of two digits as two
        convolutions (weights of more than 8 bits in one of them are rounded again by ONNX Runtime where a quantiser follows).
        `order` rearranges the output's channels, `factor` is a power of two that changes its unit; with `patch` it takes in what
        `pixel_unshuffle` by that would give."""
        q, scale = self.weights(conv)
        bias_scale = (scale * input_scale).astype(np.float32)
        bias = np.rint(conv.bias.detach().numpy().astype(np.float64) / bias_scale)
        conv.bias.data = torch.from_numpy((bias * bias_scale).astype(np.float32))  # so that PyTorch computes the same
        high, low = digits(q) if conv.wide else (np.zeros_like(q), q)
        assert max(np.abs(high).max(), np.abs(low).max()) <= quant.WEIGHT_MAX
        bound = (DIGIT * np.abs(high) + np.abs(low)).reshape(len(q), -1).sum(1) * 255 + np.abs(bias)
        assert bound.max() < quant.EXACT, "an accumulator could leave 24 bits"
        if patch > 1:
            high, low = (d.reshape(len(q), -1, patch, patch) for d in (high, low))

        def digit(q, bias, scale):
            scale = (scale * np.float32(factor)).astype(np.float32)
            constants = lambda values, by, kind, hint: [self.constant(values[order].astype(kind), hint), self.constant(by[order].astype(np.float32), "s")]
            w = self.node("DequantizeLinear", [*constants(q, scale, np.int8, "w"), self.constant(np.zeros(len(q), np.int8), "z")], axis=0)
            # Without its zero, which no engine needs and which would be as large as the bias.
            b = self.node("DequantizeLinear", constants(bias, scale * np.float32(input_scale), np.int32, "b"), axis=0)
            return self.node("Conv", [x, w, b], group=conv.groups, strides=[patch] * 2, pads=[conv.padding[0]] * 4, kernel_shape=q.shape[2:])

        if not conv.wide:
            return digit(low, bias, scale)
        return self.node("Add", [digit(high, np.zeros_like(bias), scale * DIGIT), digit(low, bias, scale)])

    def conv_wide(self, x, conv, input_unit, input_bound, input_factor=1.0):
        """Input of more than 8 bits, integers times `input_unit` not beyond `input_bound` of them: float32, exact by its range.
        `input_factor` is a power of two that changes the unit of the input."""
        q, scale = self.weights(conv)
        unit = (scale * input_unit).astype(np.float64)
        bias = np.rint(conv.bias.detach().numpy().astype(np.float64) / unit) * unit
        conv.bias.data = torch.from_numpy(bias.astype(np.float32))  # so that PyTorch computes the same
        bound = np.abs(q).reshape(len(q), -1).sum(1) * input_bound + np.abs(bias / unit)
        print(f"  wide convolution: accumulator below 2^{np.log2(bound.max()):.2f}")
        assert bound.max() < quant.EXACT, "an accumulator could leave 24 bits"
        return self.node("Conv", [x, self.two_digits(q, scale * input_factor), self.constant(bias.astype(np.float32), "b")],
                         group=conv.groups, pads=[conv.padding[0]] * 4, kernel_shape=conv.kernel_size)

    def dequantised(self, q, scale):
        """Integers of 8 bits times a scale for each output channel. Without its zero point, which no engine needs."""
        return self.node("DequantizeLinear", [self.constant(q.astype(np.int8), "w"), self.constant(scale.astype(np.float32), "ws")], axis=0)

    def two_digits(self, q, scale):
        """A float weight that is integers of two digits times a scale for each output channel, as a sum: half the file, and exact. (float16
        is unknown to the Rust engines.)"""
        high, low = digits(q)
        return self.node("Add", [self.dequantised(high, DIGIT * scale), self.dequantised(low, scale)])

    def conv_float(self, x, weight, bias, stride=1, groups=1):
        k = weight.shape[2]
        pad = k // 2 if stride == 1 else 0
        # What finds the hyper-latent loses nothing that can be measured by eight bits.
        w = self.dequantised(*integers(weight, 127)) if weight.size > 4096 else self.constant(weight.astype(np.float32), "w")
        return self.node("Conv", [x, w, self.constant(bias.astype(np.float32), "b")],
                         group=groups, strides=[stride] * 2, pads=[pad] * 4, kernel_shape=[k, k])

    def model(self, inputs, outputs):
        value = lambda name, kind, shape: helper.make_tensor_value_info(name, kind, shape)
        graph = helper.make_graph(self.nodes, self.name, [value(*i) for i in inputs], [value(*o) for o in outputs], self.constants)
        m = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], producer_name="sdl", ir_version=10)
        onnx.checker.check_model(m, full_check=True)
        return m


def array(p):
    return p.detach().float().numpy()


def patches(conv, cin, size):
    """pixel_unshuffle by `size` followed by a 1x1 convolution is one convolution of that stride."""
    return array(conv.weight).reshape(conv.out_channels, cin, size, size)


def to_latent(a, name, taken, planes, given):
    """The graph of an `Analysis` of so many planes, from `taken`, bytes with the planes last, to `given`."""
    g = Builder(name)
    # (byte - 128) / 256
    scale, zero = g.constant(np.float32(1 / 256), "scale"), g.constant(np.uint8(128), "zero")
    x = g.node("DequantizeLinear", [g.channels_first(taken), scale, zero])
    x = g.conv8(x, a.stem, 1 / 256, patch=8)
    x = g.begin_stream(x, a.stem.out_channels)
    for b in a.early:
        x = block8(g, x, b)
    x = g.conv8(g.activation(x, a.in_down, g.to_grid), a.down, a.in_down.scale.item(), patch=2)
    x = g.begin_stream(x, a.down.out_channels)
    for b in a.blocks:
        x = block8(g, x, b)
    q, scale = integers(array(a.head.weight), quant.WEIGHT_MAX * (DIGIT - 1))
    a.head.weight.data = torch.from_numpy((q * scale.reshape(-1, 1, 1, 1)).astype(np.float32))  # so that PyTorch computes the same
    # The only sums that are not exact: an encoder may differ in the last bit.
    g.node("Conv", [g.to_grid(x), g.two_digits(q, scale), g.constant(array(a.head.bias), "b")], kernel_shape=[1, 1], strides=[1, 1], pads=[0] * 4, group=1)
    g.nodes[-1].output[0] = given
    return g.model([(taken, TensorProto.UINT8, [1, "h", "w", planes])], [(given, TensorProto.FLOAT, [1, a.head.out_channels, "lh", "lw"])])


def analysis(model):
    return to_latent(model.analysis, "analysis", "picture", 3, "latent")


def correction(module):
    """Of a picture and what is missing from it, as the analysis takes pictures."""
    return to_latent(module, "correction", "planes", 6, "direction")


def hyper_analysis(model):
    m = model.hyper_analysis
    g = Builder("hyper_analysis")
    one = g.constant(np.float32(1))
    x = g.node("Mul", [g.node("Sign", ["latent"]), g.node("Log", [g.node("Add", [g.node("Abs", ["latent"]), one])])])
    x = g.node("Relu", [g.conv_float(x, array(m.a.weight), array(m.a.bias))])
    x = g.node("Relu", [g.conv_float(x, patches(m.b, m.a.out_channels, 2), array(m.b.bias), stride=2)])
    x = g.node("Add", [x, g.conv_float(x, array(m.dw.weight), array(m.dw.bias), groups=m.dw.groups)])
    x = g.node("Relu", [g.conv_float(x, patches(m.c, m.b.out_channels, 2), array(m.c.bias), stride=2)])
    x = g.conv_float(x, array(m.d.weight), array(m.d.bias))
    g.nodes[-1].output[0] = "hyper_latent"
    return g.model([("latent", TensorProto.FLOAT, ["n", model.channels, "lh", "lw"])], [("hyper_latent", TensorProto.FLOAT, ["n", model.hyper_channels, "zh", "zw"])])


def hyper_synthesis(model):
    m = model.hyper_synthesis
    g = Builder("hyper_synthesis")
    x = g.conv_wide("hyper_latent", m.up, HYPER_UNIT, HYPER_CLIP, HYPER_UNIT)
    x = g.node("DepthToSpace", [g.activation(x, m.act_up)], blocksize=4, mode="CRD")
    x = g.activation(x, m.act_up)
    x = g.activation(g.conv8(x, m.dw, m.act_up.scale.item()), m.act_dw)
    x = g.activation(g.conv8(x, m.a, m.act_dw.scale.item()), m.act_a)
    x = g.conv8(x, m.b, m.act_a.scale.item(), factor=1 / MEAN_UNIT)
    x = g.node("Clip", [g.node("Round", [x]), g.constant(np.float32(-32767)), g.constant(np.float32(32767))])
    g.nodes[-1].output[0] = "mean"
    return g.model([("hyper_latent", TensorProto.FLOAT, [1, model.hyper_channels, "zh", "zw"])], [("mean", TensorProto.FLOAT, [1, model.channels, "lh", "lw"])])


def block8(g, x, b):
    """`x` is a stream: see `to_stream`."""
    y = g.activation(x, b.in1, g.to_grid)
    y = g.activation(g.conv8(y, b.a, b.in1.scale.item()), b.act_a)
    y = g.activation(g.conv8(y, b.dw, b.act_a.scale.item()), b.act_dw)
    x = g.node("Add", [x, g.activation(g.conv8(y, b.b, b.act_dw.scale.item()), b.out1, g.to_stream)])
    y = g.activation(x, b.in2, g.to_grid)
    y = g.activation(g.conv8(y, b.c, b.in2.scale.item()), b.act_c)
    return g.node("Add", [x, g.activation(g.conv8(y, b.d, b.act_c.scale.item()), b.out2, g.to_stream)])


def grouped(conv, size):
    """The order (dy, dx, c) of outputs (c, dy, dx): what lies together in memory stays together when a position becomes
    `size` x `size` of them."""
    return np.arange(conv.out_channels).reshape(-1, size * size).T.flatten()


def synthesis(model, m):
    g = Builder("synthesis")
    # The input arrives as integers of LATENT_UNIT.
    x = g.conv_wide("latent", m.stem, LATENT_UNIT, LATENT_CLIP, input_factor=LATENT_UNIT)
    x = g.begin_stream(x, m.stem.out_channels)
    for b in m.blocks:
        x = block8(g, x, b)
    x = g.activation(x, m.in_up, g.to_grid)
    x = g.activation(g.conv8(x, m.up, m.in_up.scale.item(), order=grouped(m.up, 4)), m.out_up, lambda x: g.channels_first(g.depth_to_space(g.channels_last(x), 4, m.dw.in_channels)))
    x = g.activation(g.conv8(x, m.dw, m.out_up.scale.item()), m.act_dw)
    x = g.activation(g.conv8(x, m.c, m.act_dw.scale.item()), m.act_c)
    # Grey levels about the middle of the range: rounding and clipping are those of the quantiser.
    x = g.conv8(x, m.head, m.act_c.scale.item(), order=grouped(m.head, 4), factor=256.0)
    x = g.node("QuantizeLinear", [x, g.constant(np.float32(1), "scale"), g.constant(np.uint8(128), "zero")])
    g.channels_last(x)
    g.nodes[-1].output[0] = "pixels"
    return g.model([("latent", TensorProto.FLOAT, [1, model.channels, "lh", "lw"])], [("pixels", TensorProto.UINT8, [1, "ph", "pw", 48])])


MANIFEST = """format = 1
name = "sdl-{generation}"
version = "{generation}"
licence = "MIT OR Apache-2.0"
source = "trained by onnx/train; see docs/results/generation-{generation}.md"
builtin = {generation}

[latent]
channels = {channels}
stride = 16

[pixels]
range = [-0.5, 0.49609375]
packing = 4
exact = true

[tiling]
margin = 4
size = 64

[graphs.analysis]
file = "analysis.onnx"
inputs = ["picture"]
outputs = ["latent"]

[graphs.hyper_analysis]
file = "hyper_analysis.onnx"
inputs = ["latent"]
outputs = ["hyper_latent"]

[graphs.hyper_synthesis]
file = "hyper_synthesis.onnx"
inputs = ["hyper_latent"]
outputs = ["mean"]

[graphs.synthesis]
file = "synthesis.onnx"
inputs = ["latent"]
outputs = ["pixels"]

[tables]
file = "tables.bin"
"""


NATURAL = """
[graphs."synthesis.natural"]
file = "natural.onnx"
inputs = ["latent"]
outputs = ["pixels"]
"""

CORRECTION = """
[graphs.correction]
file = "correction.onnx"
inputs = ["planes"]
outputs = ["direction"]
"""


def decoded(graph, decoder, latent):
    """A latent (1, C, H/16, W/16), integers of LATENT_UNIT, as its graph in ONNX Runtime and its fake-quantised module give it back: bytes (1, 3, H, W)."""
    levels = decoder.levels(torch.from_numpy(latent) * LATENT_UNIT)
    ours = torch.round(levels).add(128).clamp(0, 255).to(torch.uint8)
    got = torch.from_numpy(graph.run(None, {"latent": latent})[0])
    return got.unflatten(3, (4, 4, 3)).permute(0, 5, 1, 3, 2, 4).reshape(ours.shape), ours


def prove(model, out, pictures, decoders, encoders):
    """The graphs in ONNX Runtime and the fake-quantised PyTorch model must give the same integers, and encoders nearly the same values. `decoders`
    and `encoders`: file name to module."""
    import onnxruntime as ort

    session = lambda role: ort.InferenceSession(str(out / f"{role}.onnx"), providers=["CPUExecutionProvider"])
    integers = tables.Integers(model)
    graphs = {r: session(r) for r in ("hyper_synthesis", *decoders, *encoders)}
    samples, furthest = 0, 0.0
    with torch.no_grad():
        for x in pictures:
            # Something that is as small as what a decoder leaves missing.
            levels = torch.cat([255 * x, 128 + 255 * (x - x.roll(1, 2))])[None].round().clamp(0, 255)
            for name, module in encoders.items():
                some = levels[:, : module.stem.in_channels // 64]
                got = graphs[name].run(None, {graphs[name].get_inputs()[0].name: some.permute(0, 2, 3, 1).contiguous().to(torch.uint8).numpy()})[0]
                furthest = max(furthest, np.abs(got - module.of_planes((some - 128) / 256).numpy()).max())
            for level in (0, 40, 100):
                y, z, mean = tables.analyse(model, integers, x[None], level)
                got = graphs["hyper_synthesis"].run(None, {"hyper_latent": z[None].astype(np.float32)})[0][0]
                assert np.array_equal(got, mean), "hyper-synthesis differs between PyTorch and ONNX Runtime"
                _, _, v = integers.code(y, z, mean, level)
                latent = integers.dequantise(v, level)[None].astype(np.float32)
                for name, decoder in decoders.items():
                    got, ours = decoded(graphs[name], decoder, latent)
                    differ = (got != ours).sum().item()
                    assert differ == 0, f"{name} differs in {differ} of {ours.numel()} samples"
                    samples += ours.numel()
    assert furthest < 1e-3, f"an encoder differs by {furthest}"
    print(f"PyTorch and ONNX Runtime agree on {samples} samples, and on what encoders give to {furthest:.1e}")


def write(args, out):
    """The files of the bundle into the folder `out`, proved to be exact."""
    model = load(args.checkpoint)
    crops = data.Crops(data.load_shards(args.images, args.limit, shrink=(0.8,), least=560), 512, seed=77)
    pictures = crops.batch(3)
    decoders, encoders = {"synthesis": model.synthesis}, {"analysis": model.analysis}
    # Weights are the graphs' only after their biases are rounded.
    graphs = {"analysis": analysis(model), "hyper_analysis": hyper_analysis(model), "hyper_synthesis": hyper_synthesis(model), "synthesis": synthesis(model, model.synthesis)}
    if args.bundle:
        with zipfile.ZipFile(args.bundle) as packed:
            packed.extractall(out)
        (out / "tables.bin").write_bytes(tables.with_gain((out / "tables.bin").read_bytes(), tables.Integers(model)))
        # Files of it are about: whatever form its graphs get, they give the pixels that they gave.
        prove(model, out, pictures, decoders, {})
    else:
        integers, fitted = tables.fit(model, (crops.batch(8) for _ in range(args.crops // 8)))
        (out / "tables.bin").write_bytes(tables.write(integers, fitted))
        (out / "bundle.toml").write_text(MANIFEST.format(generation=args.generation, channels=model.channels))
    if args.natural:
        decoders["natural"] = load_natural(args.natural, model)
        graphs["natural"] = synthesis(model, decoders["natural"])
    if args.correction:
        encoders["correction"] = load_correction(args.correction)
        graphs["correction"] = correction(encoders["correction"])
    for role, graph in graphs.items():
        onnx.save(graph, out / f"{role}.onnx")
    manifest = (out / "bundle.toml").read_text()
    for section in [NATURAL] * bool(args.natural) + [CORRECTION] * bool(args.correction):
        manifest = manifest.replace(section, "") + section
    (out / "bundle.toml").write_text(manifest)
    prove(model, out, pictures, decoders, encoders)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--checkpoint", required=True)
    p.add_argument("--natural", help="checkpoint of natural.py")
    p.add_argument("--correction", help="checkpoint of correction.py")
    p.add_argument("--images", required=True)
    p.add_argument("--out", required=True)
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--generation", type=int)
    source.add_argument("--bundle", help=".sdlm file of the same decoder, whose tables are kept, and what no checkpoint is given for")
    p.add_argument("--crops", type=int, default=96, help="crops of 512x512 that the tables are fitted on")
    p.add_argument("--limit", type=int)
    args = p.parse_args()
    # What is refused half way leaves nothing behind.
    with tempfile.TemporaryDirectory() as folder:
        write(args, pathlib.Path(folder))
        shutil.copytree(folder, args.out, dirs_exist_ok=True)
    for f in sorted(pathlib.Path(args.out).iterdir()):
        print(f"{f.stat().st_size:9} {f.name}")


if __name__ == "__main__":
    main()
