"""Widens a trained model: new latent channels for what the old ones lose, and as many channels of the streams to carry them.

    python grow.py --weights ../models/sdl-7.pt --channels 32 --images ../../../shared/images/train --out /tmp/grown.pt

What a model cannot give back, even without rounding, is not in its latent, and training brings it in slowly. Much of it is a linear
function of what the encoder sees at stride 16 before its blocks: the new channels are the `--channels` largest components of the best
such function (reduced-rank regression, Izenman 1975), and the renderer gets, beside its old input, what moves its output by them, to
first order. The old channels stay as they are: at low rates, where the new ones are silent, so does the picture. Training does the rest.
"""

import argparse
import math

import torch
import torch.nn.functional as F

import data
from model import STRIDE, Model, load
from quant import entering, set_quantising
from run import half

BATCHES, BATCH, CROP = 40, 8, 256
LATENT = 2.0  # the new channels of the latent are in units of 1 / LATENT of an orthonormal component of the pixels
STREAM = 0.5  # their size in the streams
RIDGE = 1e-3, 0.05  # of the renderer's inverse: its matrix, its depthwise filters


def rows(x):
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).double()


def unrounded(model, x):
    """What the encoder has at stride 16 in front of `down`, and the latent as the synthesis would get it without rounding."""
    latent, folded = model.analysis(x), entering(model.analysis.down, model.analysis, x)
    return folded, latent * torch.exp(model.at_level(model.log_gain + model.log_ungain, torch.ones(1)))


@torch.no_grad()
def lost(model, draw, count):
    """What the model loses without rounding: (components in pixels (768, count), how the input of `down` gives them (inputs + 1, count),
    their deviations (count))."""
    inner = outer = 0
    for _ in range(BATCHES):
        x = draw()
        folded, latent = unrounded(model, x)
        error = (x - model.synthesis(latent)) * 255 / 256
        seen = F.pad(rows(folded), (0, 1), value=1.0)
        inner, outer = inner + seen.T @ seen, outer + seen.T @ rows(F.pixel_unshuffle(error, STRIDE))
    best = torch.linalg.solve(inner + 1e-7 * inner.diagonal().mean() * torch.eye(len(inner)), outer)
    variance, components = torch.linalg.eigh(best.T @ inner @ best / inner[-1, -1])
    components = components.flip(1)[:, :count]
    return components, best @ components, variance.flip(0)[:count].sqrt()


@torch.no_grad()
def renderer_inverse(model, draw):
    """The change of the depthwise layer's result (48) that moves the rendered pixels as wanted (48), on average: (48, 48)."""
    synthesis = model.synthesis
    _, latent = unrounded(model, draw())
    hidden = entering(synthesis.act_c, synthesis, latent)
    enter, leave = synthesis.c.weight[:, :, 0, 0].double(), synthesis.head.weight[:, :, 0, 0].double()
    is_open = rows((hidden > 0).float())[::37][:2000]
    jacobians = torch.einsum("oh,nh,hi->noi", leave, is_open, enter)
    square, mean = torch.einsum("noi,noj->ij", jacobians, jacobians) / len(jacobians), jacobians.mean(0)
    return torch.linalg.solve(square + RIDGE[0] * square.diagonal().mean() * torch.eye(len(square)), mean.T)


def before_depthwise(wanted, taps):
    """What a depthwise layer (taps (C, 3, 3)) needs as its input to give `wanted` (K, C, 4, 4), taken as periodic."""
    kernel = torch.zeros(wanted.shape[1:], dtype=wanted.dtype)
    for dy in range(3):
        for dx in range(3):
            kernel[:, (1 - dy) % 4, (1 - dx) % 4] += taps[:, dy, dx]
    response = torch.fft.fft2(kernel)
    power = response.abs() ** 2
    return torch.fft.ifft2(torch.fft.fft2(wanted) * response.conj() / (power + RIDGE[1] * power.amax((1, 2), keepdim=True))).real


@torch.no_grad()
def grow(old, configuration, count, draw):
    """`old`, frozen and in floating point -> (the wider model, its configuration)"""
    c, width = old.channels, old.analysis.down.out_channels
    block = old.synthesis.blocks[0]
    configuration = configuration | dict(channels=c + count, width=width + count, depthwise=block.dw.in_channels, hidden=block.c.out_channels)
    new = Model(**configuration).eval()
    values = old.state_dict()
    for name, value in new.state_dict().items():
        value.zero_()
        if not name.endswith((".scale", ".seen")):
            value[tuple(map(slice, values[name].shape))] = values[name]
    components, linear, deviation = lost(old, draw, count)
    size = STREAM / deviation.mean()
    one = torch.eye(count)[:, :, None, None]
    new.analysis.down.weight[width:, :, 0, 0] = (size * linear[:-1].T).float()
    new.analysis.down.bias[width:] = (size * linear[-1]).float()
    new.analysis.head.weight[c:, width:] = LATENT / size * one
    new.synthesis.stem.weight[width:, c:] = size / LATENT * one
    drawn = F.pixel_unshuffle(F.pixel_shuffle(components.T[:, :, None, None], STRIDE), 4)
    moved = torch.einsum("oi,kiyx->koyx", renderer_inverse(old, draw), drawn)
    moved = before_depthwise(moved, old.synthesis.dw.weight[:, 0].double())
    new.synthesis.up.weight[:, width:, 0, 0] = (F.pixel_unshuffle(moved, 4).reshape(count, -1).T / size).float()
    # Steps that are the best for squared errors where the rate is high: D = step^2 / 12, dD/dR = -2 ln2 D.
    lambdas = new.lambda_of(torch.linspace(0, 1, new.anchors))
    step = LATENT * (12 / (2 * math.log(2) * lambdas)).sqrt()[:, None] / 255
    new.log_ungain[:, c:], new.log_gain[:, c:] = step.log(), -step.log()
    new.scale_bias[:, c:] = (LATENT * deviation.float() / step).log().clamp(math.log(0.05), math.log(40.0))
    return new, configuration


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--weights", required=True)
    p.add_argument("--channels", type=int, required=True)
    p.add_argument("--images", required=True, help="folder of shard-*.tar")
    p.add_argument("--out", required=True)
    p.add_argument("--limit", type=int, help="use this many pictures (dry runs)")
    args = p.parse_args()
    torch.manual_seed(1)
    old, kept = load(args.weights), torch.load(args.weights, map_location="cpu", weights_only=True)["config"]
    set_quantising(old, False)
    crops = data.Crops(data.load_shards(args.images, args.limit), CROP, 1)
    new, shape = grow(old, kept["model"], args.channels, lambda: crops.batch(BATCH))
    torch.save({"ema": half(new), "step": 0, "config": kept | {"model": shape}}, args.out)
    print(f"{args.out}: {new.channels} channels of the latent, {sum(p.numel() for p in new.parameters())} parameters")


if __name__ == "__main__":
    main()
