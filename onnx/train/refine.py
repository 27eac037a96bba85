"""Refined latents, as the encoder makes them from effort 6 on (format/src/codec/refine.rs): what a decoder will see as well."""

import torch

from model import STRENGTH
from train import distortion_of

RATES = 0.3, 0.08  # of the first step and of the last one
FARTHEST = 1.0
REFINED = 1.8  # times STRENGTH


def refined(model, synthesis, x, level, steps, c):
    """The dequantised latent of pictures x (N, 3, H, W) after so many steps along the gradient of the distortion; `synthesis` is the
    model's, or what was compiled of it."""
    with torch.no_grad():
        ungain = torch.exp(model.at_level(model.log_ungain, level))
        scaled = model.analysis(x) * torch.exp(model.at_level(model.log_gain, level))
        _, hyper = model.hyper_latent(scaled, level)
    model.strength = STRENGTH * REFINED if steps else STRENGTH
    first, last = RATES
    for step in range(steps + 1):
        with torch.no_grad():
            mean, _, symbols = model.quantise(scaled, hyper, level)
            latent = (mean + symbols) * ungain
        if step == steps:
            return latent
        latent.requires_grad_()
        (slope,) = torch.autograd.grad(distortion_of(synthesis(latent), x, c)[0].sum(), latent)
        slope, error = slope * ungain, mean + symbols - scaled
        if step == 0:
            # What the gradient says of the error of rounding, the rounding has judged.
            curvature = ((slope * error).sum((1, 2, 3)) / error.square().sum((1, 2, 3)))[:, None, None, None]
        rate = first * (last / first) ** (step / max(steps - 1, 1))
        move = (slope / curvature - error).clamp(-FARTHEST, FARTHEST)
        scaled = scaled - rate * torch.where(curvature > 0, move, 0.0)
