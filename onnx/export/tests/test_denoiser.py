"""The arithmetic of onnx/train/denoiser.py; what its network gains is in docs/results/denoiser.md."""

import sys

import numpy as np
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "onnx" / "train"))
import denoiser  # noqa: E402


def test_what_the_network_is_asked_for_leads_back_to_the_clean_latent():
    random = torch.Generator().manual_seed(1)
    z, abar = torch.randn(6, 5, 7, 9, generator=random), denoiser.alphas_cumprod()
    x, timestep, v = denoiser.corrupt(z, abar, random)
    signal, noise = (root.view(-1, 1, 1, 1) for root in (abar[timestep].sqrt(), (1 - abar[timestep]).sqrt()))
    assert torch.allclose(signal * x - noise * v, z, atol=1e-4)
    assert not torch.allclose(x / signal, z, atol=1e-2)


def test_the_quantiser_of_the_training_is_that_of_the_encoder():
    random = torch.Generator().manual_seed(2)
    z, step = torch.randn(2, 3, 11, 13, generator=random) + 0.3, torch.full((2, 1, 1, 1), 0.7)
    nearest = denoiser.quantise(z, step, 0.5)
    assert (nearest - z).abs().max() <= 0.35 + 1e-5
    # Every value that occurs is a whole number of steps from the channel's median.
    medians = z.flatten(2).median(2).values[:, :, None, None]
    assert np.allclose(((nearest - medians) / 0.7).round().numpy(), ((nearest - medians) / 0.7).numpy(), atol=1e-4)
    # A higher threshold keeps more values on it.
    assert (denoiser.quantise(z, step, 0.65) == medians).sum() > (nearest == medians).sum()
