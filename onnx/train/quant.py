"""Fake quantisation in the form of docs/FORMAT.md: power-of-two scales, integers that fit a float's 24 bits.

Every value here is an integer times a power of two, so that a runtime may add in any order, with any kernel, and
arrive at the same bits. A layer computes in floating point until `calibrated` is set; from then on it rounds, with
straight-through gradients.
"""


import torch
import torch.nn as nn
import torch.nn.functional as F

WEIGHT_MAX = 64  # 7 bits: u8 x s8 pair sums of full 8-bit weights saturate 16 bits on x86 without VNNI


def ste(exact: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """The value of `rounded` with the gradient of `exact`."""
    return exact + (rounded - exact).detach()


def power_of_two_above(x: torch.Tensor) -> torch.Tensor:
    return torch.exp2(torch.ceil(torch.log2(x.clamp_min(2.0**-24))))


class Activation(nn.Module):
    """Rounds to `levels` integers at a power-of-two scale: unsigned from 0 (this is the ReLU) or signed about 0."""

    def __init__(self, signed: bool):
        super().__init__()
        self.signed = signed
        self.register_buffer("scale", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))
        self.quantising = False
        self.watching = False

    @property
    def zero_point(self) -> int:
        return 128 if self.signed else 0

    def bounds(self):
        return (-128.0, 127.0) if self.signed else (0.0, 255.0)

    def watch(self, x):
        """Calibration: the running mean of the 99.98th percentile of the magnitude."""
        sample = x.detach().float().abs().flatten()
        sample = sample[:: max(1, sample.numel() // 1_000_000)]
        top = torch.quantile(sample, 0.9998)
        self.seen.copy_(torch.where(self.seen == 0, top, 0.9 * self.seen + 0.1 * top))

    def freeze(self):
        low, high = self.bounds()
        self.scale.copy_(power_of_two_above(self.seen / high))

    def forward(self, x):
        if self.watching:
            self.watch(x)
        if not self.quantising:
            return x if self.signed else F.relu(x)
        x = x.float()
        low, high = self.bounds()
        clipped = (x / self.scale).clamp(low, high)
        return ste(clipped, torch.round(clipped)) * self.scale


class Conv(nn.Conv2d):
    """A convolution whose weights are integers of `weight_max` times a power of two for each output channel."""

    def __init__(self, cin, cout, kernel=1, groups=1, weight_max=WEIGHT_MAX):
        super().__init__(cin, cout, kernel, padding=kernel // 2, groups=groups)
        self.weight_max = weight_max
        self.quantising = False

    def weight_scale(self):
        top = self.weight.detach().float().abs().amax(dim=(1, 2, 3))
        return power_of_two_above(top / self.weight_max)

    def forward(self, x):
        if not self.quantising:
            return super().forward(x)
        scale = self.weight_scale().view(-1, 1, 1, 1)
        w = self.weight.float()
        w = ste(w, torch.round(w / scale) * scale)
        # The convolution itself must be exact: float32, never bf16.
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(x.float(), w, self.bias.float(), padding=self.padding, groups=self.groups)


def set_quantising(module: nn.Module, on: bool):
    for m in module.modules():
        if isinstance(m, (Activation, Conv)):
            m.quantising = on


def set_watching(module: nn.Module, on: bool):
    for m in module.modules():
        if isinstance(m, Activation):
            m.watching = on


def freeze(module: nn.Module):
    for m in module.modules():
        if isinstance(m, Activation):
            m.freeze()
