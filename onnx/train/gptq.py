"""Rounds the weights of a model to their integers with little loss and without training: what one weight loses by its rounding, those
that come after it take up as well as the input lets them (GPTQ, Frantar et al. 2022). Before that each layer is fitted by least squares
to what it gives in floating point, on the inputs it gets from quantised layers (Nagel et al. 2020 have why these differ)."""

import copy

import torch
import torch.nn.functional as F

import quant

ROUNDING = 8  # batches of 16 crops that are looked at
RIDGE, DAMPING = 0.01, 0.002  # shares of the mean square of an input, against weights that hardly any input tells of


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
        inputs = rows(conv, entered)
        weighted = inputs * weights.repeat_interleave(inputs.shape[1] // len(weights))[None, :, None]
        square, cross = square + (weighted.transpose(1, 2) @ inputs).double(), cross + (missing @ weighted).double()
    return square, cross


def rounded(weights, square, scale, most):
    """Weights (outputs, inputs and bias) of one group as integers up to `most` times `scale`, one for each output, each error taken up by the
    weights not yet rounded, the bias last."""
    inputs = weights.shape[1] - 1
    size = square.diagonal()[:inputs]
    order = torch.cat([size.argsort(descending=True), torch.tensor([inputs], device=size.device)])
    damping = torch.eye(inputs + 1, dtype=size.dtype, device=size.device) * (DAMPING * size.mean() + 1e-9)
    spread = torch.linalg.cholesky(torch.linalg.inv(square[order][:, order] + damping), upper=True)
    left = weights[:, order]
    for j in range(inputs):
        value = torch.round(left[:, j] / scale).clamp(-most, most) * scale
        left[:, j + 1 :] -= ((left[:, j] - value) / spread[j, j])[:, None] * spread[j, j + 1 :]
        left[:, j] = value
    result = torch.empty_like(left)
    result[:, order] = left
    return result


def fit(conv, square, cross):
    """New weights and biases for a quantised convolution."""
    groups, inputs = square.shape[0], square.shape[1] - 1
    weights = torch.cat([conv.weight.double().reshape(groups, -1, inputs), conv.bias.double().reshape(groups, -1, 1)], -1)
    size = square.diagonal(dim1=1, dim2=2)
    ridge = torch.diag_embed((RIDGE * size.mean(1, keepdim=True) + 1e-9).expand_as(size))
    weights = weights + torch.linalg.solve(square + ridge, cross.transpose(1, 2)).transpose(1, 2)
    conv.weight.copy_(weights[..., :inputs].reshape_as(conv.weight))
    scale, most = conv.weight_scale(), quant.WEIGHT_MAX if conv.wide is None else quant.EXACT
    for _ in range(4):
        # What weights take up may make the sum of wide ones larger than the scale has room for: then they are rounded to a coarser one.
        found = torch.stack([rounded(w, s, o, most) for w, s, o in zip(weights, square, scale.double().view(groups, -1))])
        conv.weight.copy_(found[..., :inputs].reshape_as(conv.weight))
        conv.bias.copy_(found[..., inputs].reshape(-1))
        if (conv.weight_scale() <= scale).all():
            break
        scale = torch.maximum(scale, conv.weight_scale())


@torch.no_grad()
def compensate_part(module, inputs, weights, rounding=False):
    """Rounds the convolutions of a part of a model whose activations have their scales, so that it comes close to what it is in floating point
    on `inputs` (a list of batches), whose pictures have the `weights`. With `rounding` its activations are rounded in that as well: it was
    trained so, and in floating point is not at its best."""
    reference = copy.deepcopy(module)
    quant.set_quantising(module, True)
    quant.set_quantising(reference, rounding, weights=False)
    convolutions = zip(*([m for m in part.modules() if isinstance(m, quant.Conv)] for part in (module, reference)))
    for conv, other in convolutions:
        fit(conv, *moments(conv, module, other, reference, list(zip(inputs, weights))))


@torch.no_grad()
def compensate(model, pictures, power):
    """The same for a whole model and `pictures` (a list of batches). What the synthesis gets wrong counts by lambda to `power`."""
    levels = [torch.linspace(0, 1, len(x), device=x.device) for x in pictures]
    compensate_analysis(model, pictures)
    latents = [model.analysis(x) for x in pictures]
    compensate_hyper(model, latents, levels)
    compensate_part(model.synthesis, [model.code(y, level)[0] for y, level in zip(latents, levels)], [model.lambda_of(level) ** power for level in levels])


@torch.no_grad()
def compensate_analysis(model, pictures):
    """The same for the analysis alone."""
    compensate_part(model.analysis, pictures, [torch.ones(len(x), device=x.device) for x in pictures], rounding=True)


@torch.no_grad()
def compensate_hyper(model, latents, levels):
    """The same for the hyper-synthesis alone, on latents (a list of batches) at their levels."""
    scaled = [y * torch.exp(model.at_level(model.log_gain, level)) for y, level in zip(latents, levels)]
    hyper = [model.hyper_latent(y, level)[1] for y, level in zip(scaled, levels)]
    compensate_part(model.hyper_synthesis, hyper, [torch.ones_like(level) for level in levels])
