"""The built-in model: analysis and synthesis at stride 16, a hyper-latent at stride 64, variable rate by gains.

Shapes are (N, C, H, W). `level` runs from 0 (fewest bits) to 1 (most). Names follow docs/FORMAT.md.
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from quant import Activation, Conv, relu, set_quantising, ste

STRIDE = 16
HYPER = 4  # latent positions per hyper-latent position, each way
SCALE_LEVELS = 64
SCALE_MIN, SCALE_MAX = 0.135, 64.0  # where it is less nothing is coded
SCALE_STEP = math.log(SCALE_MAX / SCALE_MIN) / (SCALE_LEVELS - 1)
MEAN_UNIT = 1 / 16  # means are transmitted nowhere; both sides compute them as integers of this unit
LATENT_UNIT = 1 / 64  # grid and clip of the dequantised latent, the input of the synthesis graph
LATENT_CLIP = 2047
LATENT_ROOM = 2.0  # times the largest value seen that a channel has room for
STEP_MAX = 4.0  # of the latent, when it is spread: 16 bits in the tables hold 8, and training goes on
HYPER_UNIT = 1 / 4  # of the hyper-latent, whose values are coded about means of this unit
HYPER_CLIP = 127  # of these units
HYPER_ROUNDS = 3  # in which `Model.hyper_latent` finds what is coded
STRENGTH = 0.045  # as in format/src/codec/encode.rs
ENCODER = ("analysis.", "hyper_analysis.", "log_gain")  # what no decoder knows: beginnings of names


class Block(nn.Module):
    """Depthwise block and pointwise feed-forward in the exact form: the stream stays wide, what enters a convolution has 8 bits."""

    def __init__(self, dim, depthwise=None, hidden=None):
        super().__init__()
        depthwise, hidden = depthwise or dim, hidden or 2 * dim
        self.in1, self.in2 = Activation(True), Activation(True)
        self.a, self.act_a = Conv(dim, depthwise), Activation(False)
        self.dw, self.act_dw = Conv(depthwise, depthwise, 3, groups=depthwise), Activation(False)
        self.b, self.out1 = Conv(depthwise, dim), Activation(True)
        self.c, self.act_c = Conv(dim, hidden), Activation(False)
        self.d, self.out2 = Conv(hidden, dim), Activation(True)

    def forward(self, x):
        y = self.act_dw(self.dw(self.act_a(self.a(self.in1(x)))))
        x = x + self.out1(self.b(y))
        y = self.act_c(self.c(self.in2(x)))
        return x + self.out2(self.d(y))


class Analysis(nn.Module):
    """Integers like the decoder, though nothing needs it to be exact: that is what makes it fast. Only its two ends are wide."""

    def __init__(self, channels, width, depth, depthwise, hidden, early=96, early_depth=1, down_digits=2, planes=3):
        super().__init__()
        self.stem = Conv(planes * 64, early, wide=255)
        self.early = nn.Sequential(*[Block(early) for _ in range(early_depth)])
        self.in_down, self.down = Activation(True), Conv(early * 4, width, wide=255 if down_digits == 2 else None)
        self.blocks = nn.Sequential(*[Block(width, depthwise, hidden) for _ in range(depth)])
        self.head = nn.Conv2d(width, channels, 1)

    def forward(self, x):
        return self.of_planes((255 * x - 128) / 256)

    def of_planes(self, x):
        """Of what has the units of bytes, 1 / 256."""
        x = self.early(self.stem(F.pixel_unshuffle(x, 8)))
        x = self.blocks(self.down(F.pixel_unshuffle(self.in_down(x), 2)))
        return self.head(x)


class Correction(Analysis):
    """What a latent should have more of, from the picture and what is missing from it when the latent is decoded (correction.py)."""

    def __init__(self, channels, **shape):
        super().__init__(channels, planes=6, down_digits=1, **shape)

    def forward(self, planes):
        return self.of_planes(planes)


def missing_planes(x, decoded):
    """Pictures (N, 3, H, W) as they are and as they are decoded, in steps of 1 / 255 -> what a correction sees (N, 6, H, W)"""
    return torch.cat([255 * x - 128, (255 * (x - decoded)).clamp(-128, 127)], 1) / 256


class HyperAnalysis(nn.Module):
    """Scaled latent (N, C, H, W) to hyper-latent (N, K, H/4, W/4)."""

    def __init__(self, channels, hyper_channels, width=128):
        super().__init__()
        self.a = nn.Conv2d(channels, width, 1)
        self.b = nn.Conv2d(width * 4, width, 1)
        self.dw = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.c = nn.Conv2d(width * 4, hyper_channels * 2, 1)
        self.d = nn.Conv2d(hyper_channels * 2, hyper_channels, 1)

    def forward(self, y):
        # Magnitudes matter more than values: compress them, so that one network serves every gain.
        y = torch.sign(y) * torch.log1p(y.abs())
        x = relu(self.a(y))
        x = relu(self.b(F.pixel_unshuffle(x, 2)))
        x = x + self.dw(x)
        x = relu(self.c(F.pixel_unshuffle(x, 2)))
        return self.d(x)


class HyperSynthesis(nn.Module):
    """Hyper-latent to the mean of the scaled latent, in units of MEAN_UNIT when quantising."""

    def __init__(self, channels, hyper_channels, width=64):
        super().__init__()
        self.up, self.act_up = Conv(hyper_channels, width * 16, wide=HYPER_CLIP), Activation(False)
        self.dw, self.act_dw = Conv(width, width, 3, groups=width), Activation(False)
        self.a, self.act_a = Conv(width, 2 * width), Activation(False)
        self.b = Conv(2 * width, channels)

    def forward(self, z):
        x = F.pixel_shuffle(self.act_up(self.up(z)), 4)
        x = self.act_a(self.a(self.act_dw(self.dw(x))))
        mean = self.b(x)
        if self.b.quantising:
            clipped = (mean / MEAN_UNIT).clamp(-32767, 32767)
            mean = ste(clipped, torch.round(clipped)) * MEAN_UNIT
        return mean


class Synthesis(nn.Module):
    """Blocks at stride 16, then a renderer at stride 4. The renderer has no wide stream: all that it hands on are bytes,
    because at stride 4 a runtime spends more on passing floating-point tensors through memory than on convolving."""

    def __init__(self, channels, width, depth, depthwise, hidden, late=48, late_hidden=96, late_digits=2, late_copies=(), hidden_copies=()):
        super().__init__()
        late, late_hidden = late + len(late_copies), late_hidden + len(hidden_copies)
        self.stem = Conv(channels, width, wide=LATENT_CLIP)
        self.blocks = nn.Sequential(*[Block(width, depthwise, hidden) for _ in range(depth)])
        self.in_up, self.up, self.out_up = Activation(True), Conv(width, late * 16), Activation(True)
        self.dw, self.act_dw = Conv(late, late, 3, groups=late), Activation(True)
        # Rounding the last weights to 7 bits would cost more than all else: twice the products are cheaper. Copies of channels
        # (renderer.py) are as good with one digit, and make the steps of activations finer.
        wide = 255 if late_digits == 2 else None
        # The last channels are copies.
        copies = lambda of, count: list(zip(of, range(count - len(of), count)))
        self.c, self.act_c = Conv(late, late_hidden, wide=wide), Activation(False)
        self.head = Conv(late_hidden, 48, wide=wide)
        self.dw.copies, self.c.copies = copies(late_copies, late), copies(hidden_copies, late_hidden)
        self.up.copies = [(16 * of + i, 16 * copy + i) for of, copy in self.dw.copies for i in range(16)]

    def forward(self, y):
        return (self.levels(y) + 128) / 255

    def levels(self, y):
        """Grey levels about the middle of the range, not rounded: exact when quantised, which pixels from 0 to 1 are not."""
        if self.stem.quantising:
            clipped = (y / LATENT_UNIT).clamp(-LATENT_CLIP, LATENT_CLIP)
            y = ste(clipped, torch.round(clipped)) * LATENT_UNIT
        x = self.blocks(self.stem(y))
        x = F.pixel_shuffle(self.out_up(self.up(self.in_up(x))), 4)
        x = self.act_c(self.c(self.act_dw(self.dw(x))))
        # The head's unit is 256 grey levels, a power of two.
        return 256 * F.pixel_shuffle(self.head(x), 4)


class Model(nn.Module):
    def __init__(self, channels=160, width=192, depthwise=None, hidden=None, encoder_depth=4, early_depth=1, down_digits=2, decoder_depth=3, hyper_channels=48,
                 late=48, late_hidden=96, late_digits=2, late_copies=(), hidden_copies=(), anchors=8, lambda_min=0.0002, lambda_max=0.12):
        super().__init__()
        self.channels, self.hyper_channels, self.anchors = channels, hyper_channels, anchors
        self.lambda_min, self.lambda_max = lambda_min, lambda_max
        self.strength = 0.0  # what a bit weighs in rounding, in squared symbols; the encoder of the crate has STRENGTH
        self.analysis = Analysis(channels, width, encoder_depth, depthwise, hidden, early_depth=early_depth, down_digits=down_digits)
        self.hyper_analysis = HyperAnalysis(channels, hyper_channels)
        self.hyper_synthesis = HyperSynthesis(channels, hyper_channels)
        self.synthesis = Synthesis(channels, width, decoder_depth, depthwise, hidden, late, late_hidden, late_digits, late_copies, hidden_copies)
        # Gains: the step of channel c at level t is exp(-log_gain). One curve of `anchors` points for each channel.
        ramp = torch.linspace(math.log(0.35), math.log(5.0), anchors)
        self.log_gain = nn.Parameter(ramp[:, None].repeat(1, channels))
        self.log_ungain = nn.Parameter(-ramp[:, None].repeat(1, channels))
        # Scale index: one linear map of the hyper-latent, a bias for each level and channel.
        self.scale_map = nn.Conv2d(hyper_channels, channels * HYPER * HYPER, 1, bias=False)
        nn.init.normal_(self.scale_map.weight, std=0.02)
        self.scale_bias = nn.Parameter(torch.zeros(anchors, channels))
        # What the channels before say of the scale, at the same position: (channel, channel before it).
        self.context_channel = nn.Parameter(torch.zeros(channels, channels))
        # Second pass: per channel, what four decoded neighbours say of the mean and of the scale.
        self.context_mean = nn.Parameter(torch.zeros(channels, 4))
        self.context_scale = nn.Parameter(torch.zeros(channels))
        # Hyper-latent prior: a curve for each channel, and what is known says more: all channels above, all to the left, those before.
        self.hyper_mean = nn.Parameter(torch.zeros(anchors, hyper_channels))
        self.hyper_log_scale = nn.Parameter(torch.zeros(anchors, hyper_channels))
        self.hyper_context_mean = nn.Parameter(torch.zeros(hyper_channels, 3 * hyper_channels))
        self.hyper_context_scale = nn.Parameter(torch.zeros(hyper_channels, 3 * hyper_channels))
        before = torch.cat([torch.ones(hyper_channels, 2 * hyper_channels), torch.ones(hyper_channels, hyper_channels).tril(-1)], 1)
        self.register_buffer("before", before, persistent=False)

    def lambda_of(self, level):
        return self.lambda_min * (self.lambda_max / self.lambda_min) ** level

    def at_level(self, table, level):
        """Interpolates a table (anchors, X) at level (N) in [0, 1] -> (N, X, 1, 1)."""
        t = level * (self.anchors - 1)
        i = t.floor().clamp(0, self.anchors - 2).long()
        f = (t - i)[:, None]
        return (table[i] * (1 - f) + table[i + 1] * f)[:, :, None, None]

    def neighbours(self, x):
        """The four direct neighbours (N, C, 4, H, W): above, left, right, below; zero outside."""
        p = F.pad(x, (1, 1, 1, 1))
        return torch.stack([p[:, :, :-2, 1:-1], p[:, :, 1:-1, :-2], p[:, :, 1:-1, 2:], p[:, :, 2:, 1:-1]], 2)

    def checkerboard(self, y):
        h, w = y.shape[-2:]
        grid = torch.arange(h, device=y.device)[:, None] + torch.arange(w, device=y.device)[None, :]
        return (grid % 2 == 0).to(y.dtype)  # 1 on the anchors (first pass)

    def hyper_prior(self, z, level):
        """What is known of each value of a hyper-latent when it is coded: (mean, log scale)."""
        start = self.at_level(self.hyper_mean, level)
        d = z - start
        p = F.pad(d, (1, 0, 1, 0))
        known = torch.cat([p[:, :, :-1, 1:], p[:, :, 1:, :-1], d], 1)
        weigh = lambda known, weights: F.conv2d(known, (weights * self.before)[:, :, None, None])
        mean = start + weigh(known, self.hyper_context_mean)
        log_scale = self.at_level(self.hyper_log_scale, level) + weigh(torch.log1p(known.abs() / HYPER_UNIT), self.hyper_context_scale)
        return ste(mean, torch.round(mean / HYPER_UNIT) * HYPER_UNIT), log_scale

    def hyper_latent(self, y, level):
        """Scaled latent -> (hyper-latent, the same as it is coded, with straight-through gradient). The means that it is coded about
        come of what is coded; a few rounds come close to going from value to value."""
        z = self.hyper_analysis(y).float()
        limit = HYPER_CLIP * HYPER_UNIT
        with torch.no_grad():
            coded = z
            for _ in range(HYPER_ROUNDS):
                mean, _ = self.hyper_prior(coded, level)
                coded = (mean + torch.round(z - mean)).clamp(-limit, limit)
        return z, ste(z, coded)

    def quantise(self, y, z_hat, level):
        """Scaled latent y and rounded hyper-latent -> (mean, log scale, symbols with straight-through gradient)."""
        mean = self.hyper_synthesis(z_hat).float()
        log_scale = F.pixel_shuffle(self.scale_map(z_hat).float(), HYPER) + self.at_level(self.scale_bias, level)
        first = self.checkerboard(y)
        # Weighing bits needs all channels before. Nearest integers stand for them: what is in their place is the same but for few.
        hint = self.said_by_channels(torch.round(y - mean)) if self.strength else 0
        symbols = ste(y - mean, rounded(y - mean, log_scale + hint, self.strength)) * first
        around = self.neighbours(symbols)
        second_mean = torch.einsum("nckhw,ck->nchw", around, self.context_mean)
        if self.hyper_synthesis.b.quantising:
            second_mean = ste(second_mean, torch.round(second_mean / MEAN_UNIT) * MEAN_UNIT)
        mean = mean + second_mean * (1 - first)
        magnitude = torch.log1p(around.detach().abs().sum(2))
        log_scale = log_scale + magnitude * self.context_scale[:, None, None] * (1 - first)
        symbols = symbols + ste(y - mean, rounded(y - mean, log_scale + hint, self.strength)) * (1 - first)
        return mean, log_scale + self.said_by_channels(symbols), symbols

    def said_by_channels(self, symbols):
        """What the logarithm of a scale gets from the channels before."""
        return F.conv2d(torch.log1p(symbols.detach().abs()), self.context_channel.tril(-1)[:, :, None, None])

    def bits(self, value, symbols, log_scale):
        """What symbols cost, of values about their means. In training values and means learn from noise in the place of rounding, and
        scales from what is coded: where they are small these are far apart."""
        coded = gaussian_bits(symbols.detach(), log_scale)
        if not self.training:
            return coded
        noisy = gaussian_bits(value + torch.rand_like(value) - 0.5, log_scale.detach())
        return coded + noisy - noisy.detach()

    def symbols(self, y, level):
        """Scaled latent (N, C, H, W), H and W multiples of 4 -> (mean, symbols with straight-through gradient, bits of y, bits of z), bits a
        picture."""
        z, z_hat = self.hyper_latent(y, level)
        z_mean, z_log_scale = self.hyper_prior(z_hat, level)
        z_bits = self.bits(z - z_mean, torch.round(z - z_mean), z_log_scale)
        mean, log_scale, symbols = self.quantise(y, z_hat, level)
        y_bits = self.bits(y - mean, symbols, log_scale)
        return mean, symbols, y_bits.sum((1, 2, 3)), z_bits.sum((1, 2, 3))

    def code(self, y, level):
        """Latent (N, C, H, W), H and W multiples of 4 -> (dequantised latent, bits of y, bits of z), bits a picture."""
        mean, symbols, *bits = self.symbols(y * torch.exp(self.at_level(self.log_gain, level)), level)
        return (symbols + mean) * torch.exp(self.at_level(self.log_ungain, level)), *bits

    def forward(self, x, level):
        """Pixels (N, 3, H, W) in [0, 1], H and W multiples of 64 -> (reconstruction, bits of y, bits of z), bits a picture."""
        y_hat, y_bits, z_bits = self.code(self.analysis(x).float(), level)
        return self.synthesis(y_hat), y_bits, z_bits


class LowerBound(torch.autograd.Function):
    """max(x, bound) whose gradient still lets x grow (Balle et al. 2018)."""

    @staticmethod
    def forward(ctx, x, bound):
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp_min(bound)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * ((x >= ctx.bound) | (g < 0)), None


def gaussian_bits(residual, log_scale):
    """Bits of a zero-mean Gaussian with unit-width bins, residual possibly non-integer."""
    scale = torch.exp(LowerBound.apply(log_scale, math.log(SCALE_MIN)).clamp_max(math.log(SCALE_MAX)))
    r = residual.abs()
    inv = 1 / (scale * math.sqrt(2))
    p = 0.5 * (torch.erfc((r - 0.5) * inv) - torch.erfc((r + 0.5) * inv))
    return -torch.log2(LowerBound.apply(p, 1e-9))


@torch.no_grad()
def rounded(value, log_scale, strength):
    """The nearest integer, or the one next to it towards 0 if its squared error and `strength` times its bits are less."""
    nearest = torch.round(value)
    if strength == 0:
        return nearest
    smaller = nearest - torch.sign(nearest)
    cost = lambda symbols: (value - symbols).square() + strength * gaussian_bits(symbols, log_scale)
    return torch.where(cost(smaller) < cost(nearest), smaller, nearest)


@torch.no_grad()
def spread_latent(models, x, level):
    """All channels of the latent share one grid and one clip, and the sums of the stem have to have room for all of them at the clip: small
    channels are rounded coarsely and make the weights of all coarser. Enlarges their steps as far as there is room; what the stem makes of them stays.
    The pictures `x` are shown to the first of the models, and the others change alike."""
    first = models[0]
    most = first.code(first.analysis(x).float(), level)[0].abs().amax((0, 2, 3))
    step = torch.exp(first.log_ungain).amax(0)
    factor = torch.minimum(LATENT_CLIP * LATENT_UNIT / (LATENT_ROOM * most), STEP_MAX / step).clamp_min(1)
    for model in models:
        model.log_ungain.add_(torch.log(factor))
        model.synthesis.stem.weight.div_(factor[None, :, None, None])


def load(path, strict=True):
    """The model of a checkpoint of train.py, for use: frozen, and quantised if its training had come so far. Unless `strict`, a checkpoint of
    parts of it will do."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    shape = checkpoint.get("config", {}).get("model", {})
    model = Model(**shape)
    model.shape = shape
    model.load_state_dict({k: v.float() for k, v in checkpoint["ema"].items()}, strict)
    set_quantising(model, bool(model.synthesis.out_up.scale > 0))
    return model.eval().requires_grad_(False)


def load_natural(path, model):
    """The decoder of natural.py in the place of the model's own, which may have got another shape since."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    natural = Model(**checkpoint["config"].get("model", model.shape)).synthesis
    natural.load_state_dict({k: v.float() for k, v in checkpoint["ema"].items()})
    set_quantising(natural, True)
    return natural.eval().requires_grad_(False)


def load_correction(path):
    """What correction.py trained, quantised."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    config = checkpoint["config"]
    correction = Correction(config["model"]["channels"], **config["correction"])
    correction.load_state_dict({k: v.float() for k, v in checkpoint["ema"].items()})
    set_quantising(correction, True)
    return correction.eval().requires_grad_(False)
