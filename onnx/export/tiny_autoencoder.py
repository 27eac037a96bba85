"""Turns a tiny autoencoder into a bundle.

CHECKPOINT is one of
  - a folder or hub id of diffusers with an AutoencoderTiny (madebyollin/taesd, taesdxl, taesd3, taef1);
  - a folder with *_encoder.pth and *_decoder.pth in the layout of github.com/madebyollin/taesd (taef2 too; .safetensors as well);
  - a folder with VAEencoder.onnx and VAEpreview.onnx of github.com/Graphnull/VAElight.

    python tiny_autoencoder.py ../../../shared/models/taef2 taef2 --licence MIT --source https://github.com/madebyollin/taesd
    sdl model import taef2
    sdl encode photo.png photo.sdl --model taef2
"""

import pathlib

import onnx
import onnx.version_converter
import onnx_ir
import onnxruntime
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import bundle

# The largest window that is decoded at once; a pooled block looks at all of it. 1024x1024 pixels take about a gigabyte.
WINDOW = 1024


class Clamp(nn.Module):
    def forward(self, x):
        return torch.tanh(x / 3) * 3


class Block(nn.Module):
    """Three 3x3 convolutions beside the identity; taef2's have a pooled branch in front, at the lowest resolution."""

    def __init__(self, channels_in, channels_out, pooled):
        super().__init__()
        layers = []
        for channels in (channels_in, channels_out, channels_out):
            layers += [nn.Conv2d(channels, channels_out, 3, padding=1), nn.ReLU()]
        self.conv = nn.Sequential(*layers[:-1])
        self.skip = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1, bias=False)
        self.pool = None
        if pooled:
            self.pool = nn.Sequential(nn.Conv2d(channels_in, pooled, 1, bias=False), nn.GroupNorm(4, pooled), nn.ReLU(),
                                      nn.Conv2d(pooled, channels_in, 1, bias=False))  # fmt: skip

    def forward(self, x):
        if self.pool is not None:
            x = x + self.pool(x)
        return F.relu(self.conv(x) + self.skip(x))


def sequential(weights, decoder):
    """The network of a state dict in the original layout: an `nn.Sequential`, whose layers without weights are the gaps in its numbers."""
    numbers = sorted({int(key.split(".")[0]) for key in weights})
    if not numbers:
        raise bundle.Refused(f"the {'decoder' if decoder else 'encoder'} has no weights")
    layers = [Clamp()] if decoder else []
    for number in numbers:
        if number > len(layers):
            # Behind the first convolution (and the second of the encoder at stride 32) a ReLU; in the decoder else an upsampling.
            layers.append(nn.Upsample(scale_factor=2) if decoder and len(layers) > 2 else nn.ReLU())
        if number != len(layers):
            raise bundle.Refused(f"layer {number} of the {'decoder' if decoder else 'encoder'} is not of the layout of TAESD")
        if (kernel := weights.get(f"{number}.weight")) is not None:
            biased = f"{number}.bias" in weights
            # Convolutions that change the resolution have no bias, but for those in front of a ReLU in the encoder.
            halves = not decoder and (not biased or number + 1 not in numbers and number != numbers[-1])
            layers.append(nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, padding=1, bias=biased, stride=2 if halves else 1))
        else:
            kernel, pool = weights[f"{number}.conv.0.weight"], weights.get(f"{number}.pool.0.weight")
            layers.append(Block(kernel.shape[1], kernel.shape[0], 0 if pool is None else pool.shape[0]))
    network = nn.Sequential(*layers)
    network.load_state_dict(weights)
    return network


def read(path):
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)


def original(folder):
    """Analysis, synthesis and files of a folder in the original layout."""
    found = []
    for half in ("encoder", "decoder"):
        files = [file for file in sorted(folder.glob(f"*_{half}.*")) if file.suffix in (".pth", ".safetensors")]
        if len(files) != 1:
            raise bundle.Refused(f"{folder} has {len(files)} files *_{half}.pth or .safetensors; there must be one")
        found += files
    networks = []
    for decoder, file in enumerate(found):
        with bundle.reading(file):
            networks.append(sequential(read(file), decoder))
    return *networks, found


class Half(nn.Module):
    """One direction of an `AutoencoderTiny`."""

    def __init__(self, model, decoder):
        super().__init__()
        self.network = model.decoder if decoder else model.encoder

    def forward(self, x):
        return self.network(x)


def diffusers(checkpoint):
    """Analysis, synthesis, files and configuration of an `AutoencoderTiny`."""
    from diffusers import AutoencoderTiny

    folder = pathlib.Path(checkpoint)
    with bundle.reading(checkpoint):
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            folder = pathlib.Path(snapshot_download(checkpoint, allow_patterns=["config.json", "*.safetensors", "LICENSE*"]))
        model = AutoencoderTiny.from_pretrained(folder)
    return Half(model, False), Half(model, True), list(folder.glob("*.safetensors")) + list(folder.glob("*.bin")), model.config, folder


def vaelight(folder, writer):
    """Writes the graphs of VAElight; returns the files. There is no PyTorch for them: the reference are the graphs as they came."""
    files = [folder / "VAEencoder.onnx", folder / "VAEpreview.onnx"]
    graphs, before = [], []
    for file in files:
        with bundle.reading(file):
            graphs.append(onnx.version_converter.convert_version(onnx.load(file), bundle.OPSET))
            before.append(onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]))
    encoder, preview = graphs
    names = [output.name for output in preview.graph.output]

    # The picture is the sum of the four, each upsampled to the size of the last.
    constants = {"sizes_from": [2], "sizes_to": [4], "channels_from": [0], "channels_to": [2]}
    node = onnx.helper.make_node
    nodes = [node("Shape", [names[-1]], ["shape"]), node("Slice", ["shape", "channels_from", "channels_to"], ["front"]),
             node("Slice", ["shape", "sizes_from", "sizes_to"], ["size"]), node("Concat", ["front", "size"], ["target"], axis=0)]  # fmt: skip
    for name in names[:-1]:
        nodes.append(node("Resize", [name, "", "", "target"], [f"wide_{name}"], mode="linear", coordinate_transformation_mode="half_pixel"))
    nodes.append(node("Sum", [*(f"wide_{name}" for name in names[:-1]), names[-1]], ["pixels"]))
    preview.graph.node.extend(nodes)
    preview.graph.initializer.extend(onnx.helper.make_tensor(name, onnx.TensorProto.INT64, [1], value) for name, value in constants.items())

    def sum_of_outputs(latent):
        *coarse, fine = (torch.from_numpy(output) for output in before[1].run(names, {"latent": latent.numpy()}))
        return fine + sum(F.interpolate(other, fine.shape[2:], mode="bilinear", align_corners=False) for other in coarse)

    def as_it_came(picture):
        return torch.from_numpy(before[0].run(["latent"], {"input": picture.numpy()})[0])

    _ports(encoder, "input", "latent", 4)
    _ports(preview, "latent", "pixels", 3)
    writer.model("analysis", _model(encoder), {"input": lambda h, w: torch.rand(1, 3, 8 * h, 8 * w) * 2 - 1}, ["latent"], as_it_came)
    writer.model("synthesis", _model(preview), {"latent": lambda h, w: torch.randn(1, 4, h, w) * 5}, ["pixels"], sum_of_outputs)
    return files


def _ports(model, given, result, channels):
    """One input, one output; their sizes are not tied to each other."""
    graph = model.graph
    (port,) = (port for port in graph.input if port.name == given)
    shape = [1, port.type.tensor_type.shape.dim[1].dim_value, "height", "width"]
    del graph.input[:], graph.output[:], graph.value_info[:]
    graph.input.append(onnx.helper.make_tensor_value_info(given, onnx.TensorProto.FLOAT, shape))
    graph.output.append(onnx.helper.make_tensor_value_info(result, onnx.TensorProto.FLOAT, [1, channels, "rows", "columns"]))


def _model(proto):
    onnx.checker.check_model(proto)
    return bundle.anonymous(onnx_ir.from_proto(proto))


def main():
    parser = bundle.arguments(__doc__, "MIT")
    parser.add_argument("--denoiser", type=pathlib.Path, metavar="FOLDER", help="of denoiser.onnx and denoiser.toml, as onnx/train/denoiser.py exports it")
    args = bundle.checked(parser.parse_args())
    folder = pathlib.Path(args.checkpoint)
    is_vaelight = (folder / "VAEpreview.onnx").exists()
    if is_vaelight:
        bundle.required(folder, "VAEencoder.onnx")
    if args.denoiser:
        bundle.required(args.denoiser, "denoiser.onnx", "denoiser.toml")
    with bundle.Bundle(args.out) as writer:
        source = revision = None
        pixels = [0.0, 1.0]
        if is_vaelight:
            if args.fp16:
                raise bundle.Refused("--fp16 is for PyTorch's weights; VAElight's graphs are taken as they are")
            files, channels, stride, pixels = vaelight(folder, writer), 4, 8, [-1.0, 1.0]
            scale, shift, step = 0.18215, 0.0, 0.4
        else:
            scale, shift, step = 1.0, 0.0, 0.5
            if folder.is_dir() and not (folder / "config.json").exists():
                analysis, synthesis, files = original(folder)
            else:
                analysis, synthesis, files, config, folder = diffusers(args.checkpoint)
                pixels, scale, shift = [-1.0, 1.0], config.scaling_factor, config.shift_factor
                if not pathlib.Path(args.checkpoint).is_dir():
                    source, revision = f"https://huggingface.co/{args.checkpoint}", folder.name
            with torch.no_grad():
                latent = analysis.float()(torch.zeros(1, 3, 256, 256))
            channels, stride = latent.shape[1], 256 // latent.shape[2]
            low, high = pixels
            picture = {"picture": lambda h, w: torch.rand(1, 3, stride * h, stride * w) * (high - low) + low}
            writer.graph("analysis", analysis, picture, ["latent"], args.fp16)
            writer.graph("synthesis", synthesis, {"latent": lambda h, w: torch.randn(1, channels, h, w)}, ["pixels"], args.fp16)
        denoiser = writer.denoiser(args.denoiser) if args.denoiser else {}
        if (folder / "LICENSE").exists():
            writer.add("LICENSE", folder / "LICENSE")
        writer.finish(bundle.provenance(args, files, source, revision) | {
            "latent": {"channels": channels, "stride": stride, "scale": scale, "shift": shift, "step": step} | denoiser.pop("latent", {}),
            "pixels": {"range": pixels},
            "tiling": {"margin": 8, "size": WINDOW // stride},
        } | denoiser)  # fmt: skip
    print(f"{args.out} is written; next: sdl model import {args.out}")


if __name__ == "__main__":
    bundle.run(main)
