"""Fake quantisation in the form of docs/FORMAT.md: power-of-two scales, integers that fit a float's 24 bits.

Every value here is an integer times a power of two, so that a runtime may add in any order, with any kernel, and
arrive at the same bits. A layer computes in floating point until `calibrated` is set; from then on it rounds, with
straight-through gradients.
"""


import torch
import torch.nn as nn
import torch.nn.functional as F

WEIGHT_MAX = 64  # 7 bits: u8 x s8 pair sums of full 8-bit weights saturate 16 bits on x86 without VNNI
CLIPPING = 30  # what the squared error of clipping counts: unlike that of rounding it has the same sign in many channels at once
EXACT = 2**24  # integers below it are exact in float32


def ste(exact: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """The value of `rounded` with the gradient of `exact`."""
    return exact + (rounded - exact).detach()


class Relu(torch.autograd.Function):
    """ReLU that keeps its result for the way back, as the next convolution does anyway. Left to itself the compiler keeps masks,
    and writing those takes it longer than all convolutions."""

    @staticmethod
    def forward(ctx, x):
        y = F.relu(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return torch.where(y > 0, g, 0.0)


relu = Relu.apply


class Levels(torch.autograd.Function):
    """Rounds to integers from `low` to `high` times `scale`, straight through within that range. No masks, as in `Relu`."""

    @staticmethod
    def forward(ctx, x, scale, low, high):
        ctx.save_for_backward(x, scale)
        ctx.bounds = low, high
        # A power of two: multiplying is as exact as dividing, and faster.
        return torch.round(x * scale.reciprocal()).clamp(low, high) * scale

    @staticmethod
    def backward(ctx, g):
        x, scale = ctx.saved_tensors
        low, high = ctx.bounds
        return torch.where((x > low * scale) & (x < high * scale), g, 0.0), None, None, None


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
            return x if self.signed else relu(x)
        # Levels from 0 to 255 lose nothing in bf16; what a stream is made of stays wide.
        return Levels.apply(x.float() if self.signed else x, self.scale, *self.bounds())


class Conv(nn.Conv2d):
    """A convolution whose weights are integers times a power of two for each output channel: of 7 bits, or with `wide`, the
    largest magnitude of its input as an integer, of as many bits as the sums leave room for."""

    def __init__(self, cin, cout, kernel=1, groups=1, wide=None):
        super().__init__(cin, cout, kernel, padding=kernel // 2, groups=groups)
        self.wide = wide
        self.copies = []  # (channel of the output, another that is a copy of it): what reads them takes the sum
        self.quantising = False

    def weight_scale(self):
        magnitude = self.weight.detach().float().abs()
        if self.wide is None:
            return power_of_two_above(magnitude.amax(dim=(1, 2, 3)) / WEIGHT_MAX)
        # Half the room is for the bias and for what rounding adds. Two digits of 7 bits hold the largest.
        least = magnitude.amax(dim=(1, 2, 3)) / (WEIGHT_MAX * 127)
        return power_of_two_above(torch.maximum(least, magnitude.sum(dim=(1, 2, 3)) * self.wide / (EXACT / 2)))

    def forward(self, x):
        if not self.quantising:
            return super().forward(x)
        scale = self.weight_scale().view(-1, 1, 1, 1)
        w = self.weight.float()
        w = ste(w, torch.round(w / scale) * scale)
        # The convolution itself must be exact: float32, never bf16.
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(x.float(), w, self.bias.float(), padding=self.padding, groups=self.groups)


class Reached(Exception):
    pass


def entering(layer: nn.Module, module: nn.Module, *arguments):
    """What enters `layer`, a part of `module`, when that gets the arguments. What comes behind it is not computed."""
    seen = []

    def stop(_, inputs):
        seen.append(inputs[0])
        raise Reached

    hook = layer.register_forward_pre_hook(stop)
    try:
        module(*arguments)
    except Reached:
        pass
    finally:
        hook.remove()
    return seen[0]


def convolutions(module: nn.Module):
    """Those of a module, in the order in which it has them."""
    return [m for m in module.modules() if isinstance(m, Conv)]


def set_quantising(module: nn.Module, on: bool, weights=True):
    """Whether it rounds; with `weights` false only activations, while weights stay in floating point."""
    for m in module.modules():
        if isinstance(m, Activation):
            m.quantising = on
        elif isinstance(m, Conv):
            m.quantising = on and weights


def set_watching(module: nn.Module, on: bool):
    for m in module.modules():
        if isinstance(m, Activation):
            m.watching = on


def freeze(module: nn.Module):
    for m in module.modules():
        if isinstance(m, Activation):
            m.freeze()


def hidden(block):
    """The sites within a block: see `sites`."""
    return [([block.a], [(block.act_a, 1.0)], [block.dw]), ([block.dw], [(block.act_dw, 1.0)], [block.b])]


def stream(blocks, writers, readers, rounders=()):
    """The stream through `blocks`, with what writes it in front of them, and what reads it behind."""
    writers, readers, rounders = [*writers], [*readers], [*rounders]
    for block in blocks:
        writers += [block.b, block.d]
        readers = [block.a, block.c, *readers]  # in front: what is behind may read four positions as one
        # Next to nothing is lost in the blocks, as long as nothing is clipped.
        rounders += [(a, 0.25 / len(blocks)) for a in (block.in1, block.in2, block.out1, block.out2)]
    return writers, rounders, readers


def sites(model, parts):
    """Where channels of the synthesis, and of the analysis, may have a range of their own: (what writes them, what rounds them and how much
    that matters, what reads them). Elsewhere nothing is gained."""
    result = []
    if "synthesis" in parts:
        s = model.synthesis
        result += [stream(s.blocks, [s.stem], [s.up], [(s.in_up, 1.0)]), ([s.up], [(s.out_up, 1.0)], [s.dw]), ([s.dw], [(s.act_dw, 1.0)], [s.c])]
        for block in s.blocks:
            result += hidden(block)
        result.append(([s.c], [(s.act_c, 1.0)], [s.head]))
    if "analysis" in parts:
        a = model.analysis
        result += [stream(a.early, [a.stem], [a.down], [(a.in_down, 1.0)]), stream(a.blocks, [a.down], [a.head])]
        for block in [*a.early, *a.blocks]:
            result += [*hidden(block), ([block.c], [(block.act_c, 1.0)], [block.d])]
    return result


@torch.no_grad()
def rescale(writers, readers, factor):
    """Multiplies channels by `factor`, one for each, where they are written; what reads them takes it back. An output may hold several positions of a
    channel side by side, and so may an input."""
    of = lambda outside: factor.repeat_interleave(outside // len(factor))
    for writer in writers:
        writer.weight.mul_(of(writer.out_channels)[:, None, None, None])
        writer.bias.mul_(of(writer.out_channels))
    for reader in readers:
        of_reader = of(reader.in_channels)
        reader.weight.div_(of_reader[:, None, None, None] if reader.groups > 1 else of_reader[None, :, None, None])


@torch.no_grad()
def level_channels(models, x, level, parts=("synthesis", "analysis")):
    """All channels of a tensor share one scale for their bytes, so that those with small values have few levels. Multiplies channels by
    powers of the root of two where that makes the squared error of their rounding and clipping less; what reads them takes it back
    (Nagel et al. 2019, cross-layer equalisation). The pictures `x` are shown to the first of the models, and the others, which
    differ in their weights alone, change alike. Returns how many channels changed."""
    factors, count = [2 ** (e / 2) for e in (0, -2, -1, 1, 2, 3, 4)], 0  # a channel that is always 0 stays as it is
    for alike in zip(*(sites(m, parts) for m in models)):
        _, rounders, readers = alike[0]
        channels, total = readers[0].in_channels, 0
        for activation, weight in rounders:
            values = entering(activation, models[0], x, level)
            values = (values if activation.signed else relu(values)).transpose(0, 1).reshape(channels, -1)  # those of `up` lie sixteen to a channel
            low, high = (bound * activation.scale for bound in activation.bounds())

            def error(factor):
                inside = (factor * values).clamp(low, high)
                rounding = torch.round(inside / activation.scale) * activation.scale - inside
                return ((rounding / factor).square() + CLIPPING * (inside / factor - values).square()).mean(1)

            errors = torch.stack([error(factor) for factor in factors])
            total = total + weight * errors / errors[0].sum().clamp_min(1e-20)
        factor = torch.tensor(factors, device=x.device)[total.argmin(0)]
        count += (factor != 1).sum().item()
        # What all have in common is the scale's. Left in the weights it adds up, round by round, until a learning rate fits none of them.
        common = torch.exp2(torch.round(torch.log2(factor).mean()))
        factor = factor / common
        for writers, rounders, readers in alike:
            for activation, _ in rounders:
                activation.scale.div_(common)
            rescale(writers, readers, factor)
    return count
