"""Refined latents, as the encoder makes them from effort 6 on (format/src/codec/refine.rs): what a decoder will see as well."""

from typing import NamedTuple

import torch

from model import STRENGTH, Model
from train import distortion_of

RATES = 0.3, 0.08  # of the first step and of the last one
FARTHEST = 1.0
REFINED = 1.8  # times STRENGTH


class Refined(NamedTuple):
    """Latents as they are decoded, how far their symbols were moved before they were rounded, and how it was before: the errors of rounding,
    the logarithms of scales, the pictures (None without a step), and the steps of the encoder."""

    latent: torch.Tensor
    moved: torch.Tensor
    error: torch.Tensor
    log_scale: torch.Tensor
    decoded: torch.Tensor | None
    gain: torch.Tensor


def analysed(model, x, level):
    """Pictures -> (latent in symbols, not rounded; hyper-latent; what one symbol is to the encoder, and to the decoder)"""
    gain, ungain = (torch.exp(model.at_level(table, level)) for table in (model.log_gain, model.log_ungain))
    scaled = model.analysis(x).float() * gain
    return scaled, model.hyper_latent(scaled, level)[1], gain, ungain


class Refiner:
    """Moves latents along the gradient of the distortion; `synthesis` is the model's, or what was compiled of it."""

    def __init__(self, model, synthesis, c, compiled=lambda f: f):
        self.model, self.synthesis, self.c = model, synthesis, c
        self.analysed, self.quantise, self.distortion_of = map(compiled, (analysed, Model.quantise, distortion_of))

    def __call__(self, x, level, steps):
        """Pictures (N, 3, H, W) at their levels, after so many steps."""
        model = self.model
        model.strength = STRENGTH * REFINED if steps else STRENGTH
        with torch.no_grad():
            start, hyper, gain, ungain = self.analysed(model, x, level)
        scaled, before = start, None
        first, last = RATES
        for step in range(steps + 1):
            with torch.no_grad():
                mean, log_scale, symbols = self.quantise(model, scaled, hyper, level)
                latent, error = (mean + symbols) * ungain, mean + symbols - scaled
            if step == steps:
                return Refined(latent, scaled - start, *(before or (error, log_scale, None)), gain)
            latent = latent.contiguous(memory_format=torch.channels_last).requires_grad_()
            decoded = self.synthesis(latent).float()
            (slope,) = torch.autograd.grad(self.distortion_of(decoded, x, self.c)[0].sum(), latent)
            before = before or (error, log_scale, decoded.detach())
            slope = slope.float() * ungain
            if step == 0:
                # What the gradient says of the error of rounding, the rounding has judged.
                curvature = ((slope * error).sum((1, 2, 3)) / error.square().sum((1, 2, 3)))[:, None, None, None]
            rate = first * (last / first) ** (step / max(steps - 1, 1))
            move = (slope / curvature - error).clamp(-FARTHEST, FARTHEST)
            scaled = scaled - rate * torch.where(curvature > 0, move, 0.0)
