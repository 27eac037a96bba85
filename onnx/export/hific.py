"""Turns a checkpoint of github.com/Justin-Tan/high-fidelity-generative-compression (HiFiC in PyTorch) into a bundle.

CHECKPOINT is a .pt file of that repository (hific_low.pt, hific_med.pt, hific_hi.pt). Encoder and generator become analysis and synthesis; widths,
channels and residual blocks are read off the weights. The hyperprior is left out: the universal coder takes its place.

    python hific.py hific_med.pt hific-med --licence Apache-2.0 --source https://github.com/Justin-Tan/high-fidelity-generative-compression
    sdl model import hific-med
    sdl encode photo.png photo.sdl --model hific-med
"""

import pathlib

import torch
from torch import nn
from torch.nn import functional as F

import bundle

STRIDE = 16
EPSILON = 1e-3


class ChannelNorm(nn.Module):
    """Moments over the channels of each position (Mentzer et al. 2020, appendix A.1); the variance is the unbiased one."""

    def __init__(self, channels):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x):
        centred = x - x.mean(1, keepdim=True)
        variance = centred.square().sum(1, keepdim=True) / (x.shape[1] - 1)
        return self.gamma * (centred * torch.rsqrt(variance + EPSILON)) + self.beta


def block(*layers):
    """A sequence that is numbered as in the checkpoint."""
    return nn.Sequential(*layers)


class Encoder(nn.Module):
    """Five convolutions down to stride 16, one to the latent. `widths`: channels behind each of the five."""

    def __init__(self, widths, channels):
        super().__init__()
        self.conv_block1 = block(nn.ReflectionPad2d(3), nn.Conv2d(3, widths[0], 7), ChannelNorm(widths[0]), nn.ReLU())
        for number, (before, width) in enumerate(zip(widths, widths[1:]), 2):
            # Padded above and to the right, as TensorFlow's "same" is in the original.
            layers = nn.ReflectionPad2d((0, 1, 1, 0)), nn.Conv2d(before, width, 3, stride=2), ChannelNorm(width), nn.ReLU()
            self.add_module(f"conv_block{number}", block(*layers))
        self.conv_block_out = block(nn.ReflectionPad2d(1), nn.Conv2d(widths[-1], channels, 3))

    def forward(self, x):
        for layer in self.children():
            x = layer(x)
        return x


class ResidualBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3), nn.Conv2d(width, width, 3)
        self.norm1, self.norm2 = ChannelNorm(width), ChannelNorm(width)

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(F.pad(x, (1, 1, 1, 1), mode="reflect"))))
        return x + self.norm2(self.conv2(F.pad(y, (1, 1, 1, 1), mode="reflect")))


class Generator(nn.Module):
    """Residual blocks at stride 16, four transposed convolutions up. `bounded`: the picture is in [-1, 1], by a tanh."""

    def __init__(self, widths, channels, blocks, bounded):
        super().__init__()
        self.bounded, self.blocks = bounded, blocks
        self.conv_block_init = block(ChannelNorm(channels), nn.ReflectionPad2d(1), nn.Conv2d(channels, widths[0], 3), ChannelNorm(widths[0]))
        for number in range(blocks):
            self.add_module(f"resblock_{number}", ResidualBlock(widths[0]))
        for number, (before, width) in enumerate(zip(widths, widths[1:]), 1):
            layers = nn.ConvTranspose2d(before, width, 3, stride=2, padding=1, output_padding=1), ChannelNorm(width), nn.ReLU()
            self.add_module(f"upconv_block{number}", block(*layers))
        self.conv_block_out = block(nn.ReflectionPad2d(3), nn.Conv2d(widths[-1], 3, 7))

    def forward(self, latent):
        head = x = self.conv_block_init(latent)
        for number in range(self.blocks):
            x = getattr(self, f"resblock_{number}")(x)
        x = x + head
        for number in range(1, 5):
            x = getattr(self, f"upconv_block{number}")(x)
        x = self.conv_block_out(x)
        return torch.tanh(x) if self.bounded else x


def load(path):
    """Encoder, generator and pixel range of a checkpoint."""
    with bundle.reading(f"{path} is no checkpoint of that repository; it"):
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        weights, settings = checkpoint["model_state_dict"], checkpoint.get("args", {})
        # `module.` is what training on several devices puts in front.
        weights = {key.removeprefix("module."): value for key, value in weights.items()}
    parts = {name: {key.removeprefix(name + "."): value for key, value in weights.items() if key.startswith(name + ".")} for name in ("Encoder", "Generator")}
    with bundle.reading(f"{path}: encoder or generator is not the one of that repository with ChannelNorm; it"):
        encoder, generator = parts.values()
        widths = [encoder[f"conv_block{number}.1.weight"].shape[0] for number in range(1, 6)]
        channels = encoder["conv_block_out.1.weight"].shape[0]
        up = [generator["conv_block_init.2.weight"].shape[0], *(generator[f"upconv_block{number}.0.weight"].shape[1] for number in range(1, 5))]
        blocks = len({key.split(".")[0] for key in generator if key.startswith("resblock_")})
        if generator["resblock_0.conv1.weight"].shape[0] != up[0]:
            raise bundle.Refused("the generator was trained with sampled noise (sample_noise): it would decode to other pixels every time")
        bounded = bool(settings.get("normalize_input_image", False))
        networks = Encoder(widths, channels), Generator(up, channels, blocks, bounded)
        for network, part in zip(networks, parts.values()):
            network.load_state_dict(part)
    return *networks, channels, [-1.0, 1.0] if bounded else [0.0, 1.0]


def main():
    args = bundle.checked(bundle.arguments(__doc__, "Apache-2.0").parse_args())
    path = pathlib.Path(args.checkpoint)
    encoder, generator, channels, pixels = load(path)
    low, high = pixels
    with bundle.Bundle(args.out) as writer:
        picture = {"picture": lambda h, w: torch.rand(1, 3, STRIDE * h, STRIDE * w) * (high - low) + low}
        writer.graph("analysis", encoder, picture, ["latent"], args.fp16)
        writer.graph("synthesis", generator, {"latent": lambda h, w: torch.randn(1, channels, h, w).mul(2).round()}, ["pixels"], args.fp16)
        writer.finish(bundle.provenance(args, [path]) | {
            # The networks were trained with latents rounded to integers: that is quality 50.
            "latent": {"channels": channels, "stride": STRIDE, "scale": 1.0, "shift": 0.0, "step": 1.0},
            "pixels": {"range": pixels},
            # Each residual block looks two positions further; what is beyond 16 hardly counts.
            "tiling": {"margin": 16, "size": 64},
        })  # fmt: skip
    print(f"{args.out} is written; next: sdl model import {args.out}")


if __name__ == "__main__":
    bundle.run(main)
