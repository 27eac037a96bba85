"""Rounds the weights of a model to their integers with little loss and without training: what one weight loses by its rounding, those
that come after it take up as well as the input lets them (GPTQ, Frantar et al. 2022). Before that each layer is fitted by least squares
to what it gives with weights in floating point, on the inputs it gets from quantised layers (Nagel et al. 2020 have why these differ).

train.py ends with it, and a checkpoint of rounded activations whose weights are not rounded yet can be rounded by itself:

    python gptq.py --checkpoint ../models/sdl-7-exact.pt --images ../../../shared/images/train --out /tmp/sdl-7.pt
"""

import argparse
import copy
import itertools
import pathlib

import torch
import torch.nn.functional as F

import data
import quant
from model import STRENGTH, load, spread_latent
from run import half, write

ROUNDING = 8  # batches of 16 crops that are looked at
HALVINGS = 4  # of the scale that holds the largest weight, which are tried
RIDGE, DAMPING = 1e-3, 1e-3  # shares of the variance of an input, against weights that hardly any position tells of
LEAST = 3e-5  # and of that of all inputs together


def rows(conv, x):
    """What enters each sum of a convolution, and a 1 for the bias: (groups, positions, inputs of a group and 1)."""
    if conv.groups == 1:
        x = x.permute(0, 2, 3, 1).reshape(1, -1, conv.in_channels)
    else:
        x = F.unfold(x, conv.kernel_size, padding=conv.padding).unflatten(1, (conv.in_channels, -1))  # (N, C, taps, positions)
        x = x.permute(1, 0, 3, 2).flatten(1, 2)
    return torch.cat([x, torch.ones_like(x[..., :1])], -1)


def moments(conv, module, reference_conv, reference, batches):
    """(input by input, what is missing at the output by input): sums over positions, weighted. `batches`: (input of both, weight of each of its
    pictures)."""
    square = cross = 0
    for x, weights in batches:
        entered = quant.entering(conv, module, x)
        wanted = quant.entering(reference_conv, reference, x)
        wanted = F.conv2d(wanted, reference_conv.weight, reference_conv.bias, padding=conv.padding, groups=conv.groups)
        missing = wanted - F.conv2d(entered, conv.weight, conv.bias, padding=conv.padding, groups=conv.groups)
        missing = missing.transpose(0, 1).flatten(1)
        missing = missing[None] if conv.groups == 1 else missing[:, None]
        inputs, missing = rows(conv, entered).double(), missing.double()  # variances are small differences of these sums
        weighted = inputs * weights.repeat_interleave(inputs.shape[1] // len(weights))[None, :, None]
        square, cross = square + weighted.transpose(1, 2) @ inputs, cross + missing @ weighted
    return square, cross


def rounded(weights, covariance, scale, most):
    """Weights (outputs, inputs) of one group as integers up to `most` times `scale`, one for each output, each error taken up by the weights not yet
    rounded."""
    order = covariance.diagonal().argsort(descending=True)
    spread = torch.linalg.cholesky(torch.linalg.inv(covariance[order][:, order]), upper=True)
    left = weights[:, order]
    for j in range(len(order)):
        value = torch.round(left[:, j] / scale).clamp(-most, most) * scale
        left[:, j + 1 :] -= ((left[:, j] - value) / spread[j, j])[:, None] * spread[j, j + 1 :]
        left[:, j] = value
    result = torch.empty_like(left)
    result[:, order] = left
    return result


def rounded_finer(weights, covariance, scale, most, halvings):
    """As `rounded`, for each output to its scale or to a fraction of it, after up to so many halvings, at which cutting off the largest weights and
    rounding the others costs least. An input that is nearly constant, for one, may have a weight ten times as large as all others, and the bias
    takes up what is cut off."""
    scales = torch.cat([scale / 2**halving for halving in range(halvings + 1)])
    tried = rounded(weights.repeat(halvings + 1, 1), covariance, scales, most).view(-1, *weights.shape)
    error = tried - weights
    best = (error @ covariance * error).sum(2).argmin(0)
    return tried[best, torch.arange(len(weights), device=weights.device)]


def fit(conv, square, cross):
    """New weights and biases for a quantised convolution. The bias is not rounded to speak of, so it takes up whatever is the same everywhere, and
    the weights see their inputs about the mean."""
    groups, inputs = square.shape[0], square.shape[1] - 1
    weights, bias = conv.weight.double().reshape(groups, -1, inputs), conv.bias.double().reshape(groups, -1, 1)
    count, mean = square[:, -1:, -1:], square[:, :-1, -1:] / square[:, -1:, -1:]
    covariance = square[:, :-1, :-1] - count * mean @ mean.transpose(1, 2)
    size = covariance.diagonal(dim1=1, dim2=2)
    against = lambda share: torch.diag_embed(share * size + LEAST * size.mean(1, keepdim=True) + 1e-9)
    missing, constant = cross[..., :-1] - cross[..., -1:] @ mean.transpose(1, 2), cross[..., -1:] / count
    change = torch.linalg.solve(covariance + against(RIDGE), missing.transpose(1, 2)).transpose(1, 2)
    weights, bias = weights + change, bias + constant - change @ mean
    conv.weight.copy_(weights.reshape_as(conv.weight))
    scale = conv.weight_scale()
    most, halvings = (quant.WEIGHT_MAX, HALVINGS) if conv.wide is None else (quant.EXACT, 0)
    damped = covariance + against(DAMPING)
    for _ in range(4):
        # What weights take up may make the sum of wide ones larger than the scale has room for: then they are rounded to a coarser one.
        scales = scale.double()
        found = torch.stack([rounded_finer(w, c, s, most, halvings) for w, c, s in zip(weights, damped, scales.view(groups, -1))])
        exact, integers = weights.flatten(0, 1), found.flatten(0, 1)
        for group, pairs in itertools.groupby(conv.copies, lambda pair: pair[1] * groups // conv.out_channels):
            of, copies = map(list, zip(*pairs))
            # What the first has lost the second gives back, as far as it is a copy of it still.
            alike = (exact[copies] * exact[of]).sum(1, keepdim=True) / exact[of].square().sum(1, keepdim=True).clamp_min(1e-30)
            wanted = exact[copies] + alike * (exact[of] - integers[of])
            integers[copies] = rounded_finer(wanted, damped[group], scales[copies], most, halvings)
        conv.weight.copy_(found.reshape_as(conv.weight))
        conv.bias.copy_((bias + (weights - found) @ mean).reshape(-1))
        if (conv.weight_scale() <= scale).all():
            break
        scale = torch.maximum(scale, conv.weight_scale())


@torch.no_grad()
def compensate_part(module, inputs, weights):
    """Rounds the convolutions of a part of a model whose activations have their scales, so that it comes close to what it is with rounded
    activations alone, as it was trained, on `inputs` (a list of batches), whose pictures have the `weights`."""
    reference = copy.deepcopy(module)
    quant.set_quantising(module, True)
    quant.set_quantising(reference, True, weights=False)
    for conv, other in zip(quant.convolutions(module), quant.convolutions(reference)):
        fit(conv, *moments(conv, module, other, reference, list(zip(inputs, weights))))


@torch.no_grad()
def compensate(model, pictures, power):
    """The same for a whole model and `pictures` (a list of batches). What the synthesis gets wrong counts by lambda to `power`."""
    levels = [torch.linspace(0, 1, len(x), device=x.device) for x in pictures]
    compensate_analysis(model, pictures)
    latents = [model.analysis(x) for x in pictures]
    compensate_hyper(model, latents, levels)
    compensate_synthesis(model, latents, levels, power)


@torch.no_grad()
def compensate_analysis(model, pictures):
    """The same for the analysis alone."""
    compensate_part(model.analysis, pictures, [torch.ones(len(x), device=x.device) for x in pictures])


@torch.no_grad()
def compensate_hyper(model, latents, levels):
    """The same for the hyper-synthesis alone, on latents (a list of batches) at their levels."""
    scaled = [y * torch.exp(model.at_level(model.log_gain, level)) for y, level in zip(latents, levels)]
    hyper = [model.hyper_latent(y, level)[1] for y, level in zip(scaled, levels)]
    compensate_part(model.hyper_synthesis, hyper, [torch.ones_like(level) for level in levels])


@torch.no_grad()
def compensate_synthesis(model, latents, levels, power):
    """The same for the synthesis alone, on latents (a list of batches) at their levels."""
    compensate_part(model.synthesis, [model.code(y, level)[0] for y, level in zip(latents, levels)], [model.lambda_of(level) ** power for level in levels])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--checkpoint", required=True, help="of train.py, whose activations have their scales")
    p.add_argument("--images", required=True, help="folder of shard-*.tar")
    p.add_argument("--out", required=True, help="checkpoint with rounded weights")
    p.add_argument("--synthesis", action="store_true", help="only that of a finished generation, as renderer.py leaves it")
    p.add_argument("--limit", type=int, help="pictures that are read")
    args = p.parse_args()
    model = load(args.checkpoint)
    if not model.synthesis.stem.quantising:
        raise SystemExit(f"{args.checkpoint} has no scales yet: train.py finds them")
    checkpoint = torch.load(args.checkpoint, map_location="cpu", weights_only=False)
    config = checkpoint["config"]
    crops = data.configured(args.images, args.limit, config["data"], config["seed"])
    pictures = [crops.batch(16) for _ in range(ROUNDING)]
    model.strength, power = STRENGTH, 1 + config["loss"]["lambda_power"]
    if args.synthesis:
        levels = [torch.linspace(0, 1, len(x)) for x in pictures]
        compensate_synthesis(model, [model.analysis(x) for x in pictures], levels, power)
    else:
        quant.set_quantising(model, True, weights=False)
        spread_latent([model], torch.cat(pictures), torch.linspace(0, 1, 16).repeat(ROUNDING))
        compensate(model, pictures, power)
    write(pathlib.Path(args.out), checkpoint | {"ema": half(model)})


if __name__ == "__main__":
    main()
