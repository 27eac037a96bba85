"""The integer side of the entropy model: what the bundle's `tables.bin` holds, fitted after training.

Everything a decoder needs to choose a table is an integer here, with the arithmetic of docs/FORMAT.md. The layout of
`tables.bin`, little endian, arrays in C order:

    u16 channels C, u16 hyper_channels K, u16 levels L, u16 one
    i16 scale_map[16][C][K]      1/256 scale index for each unit of the hyper-latent; first index 4 * dy + dx
    i16 scale_bias[L][C]         1/256 scale index
    i16 context_scale[C]         1/256
    i16 context_mean[C][4]       1/256 of 1/16 for each unit of a neighbour's symbol: above, left, right, below
    i8  context_channel[C (C - 1) / 2]   1/16 scale index for each unit of ln(1 + |symbol|): for each channel those on the channels behind it
    i8  hyper_mean[L][K]         the likeliest hyper-latent
    u8  hyper_index[L][K]        its table
    u16 ungain[L][C]             1/2048 of 1/64 for each 1/16: step of the latent
    f32 gain[L][C]               for encoders: 1 / step
    the frequency tables, as `CdfSet` lays them out
"""

import math

import numpy as np
import torch

from model import HYPER, SCALE_LEVELS, SCALE_MIN, SCALE_STEP, MEAN_UNIT, LATENT_UNIT, LATENT_CLIP

LEVELS = 101
INDEX_UNIT = 256
CHANNEL_UNIT = 16  # of context_channel
MAGNITUDE_MAX = 31


def magnitude_table():
    """round(256 * ln(1 + n)) for n = 0 ... 31: listed in docs/FORMAT.md."""
    return np.array([round(256 * math.log1p(n)) for n in range(MAGNITUDE_MAX + 1)], dtype=np.int64)


def shift_round(x, bits):
    """x / 2^bits to the nearest integer, halves up."""
    return (x + (1 << (bits - 1))) >> bits


class Integers:
    """The arrays of `tables.bin` before the frequency tables."""

    def __init__(self, model):
        m = model
        levels = torch.linspace(0, 1, LEVELS)
        at = lambda t: m.at_level(t.detach().float(), levels)[:, :, 0, 0].numpy().astype(np.float64)
        c, k = m.channels, m.hyper_channels
        per_index = INDEX_UNIT / SCALE_STEP
        weight = m.scale_map.weight.detach().float().numpy()[:, :, 0, 0].astype(np.float64)  # (C * 16, K), pixel_shuffle order
        self.channels, self.hyper_channels = c, k
        clip16 = lambda x: np.clip(np.rint(x), -32768, 32767).astype(np.int64)
        self.scale_map = clip16(weight.reshape(c, 16, k).transpose(1, 0, 2) * per_index)
        # index = (ln scale - ln SCALE_MIN) / SCALE_STEP
        self.scale_bias = clip16((at(m.scale_bias) - math.log(SCALE_MIN)) * per_index)
        self.context_scale = clip16(m.context_scale.detach().numpy() / SCALE_STEP * 256)
        self.context_mean = clip16(m.context_mean.detach().numpy() / MEAN_UNIT * 256)
        # (channel that is known, channel of which it says something)
        self.context_channel = np.clip(np.rint(m.context_channel.detach().tril(-1).T.numpy() / SCALE_STEP * CHANNEL_UNIT), -128, 127).astype(np.int64)
        self.hyper_mean = np.clip(np.rint(at(m.hyper_mean)), -127, 127).astype(np.int64)
        self.hyper_index = np.clip(np.rint((at(m.hyper_log_scale) - math.log(SCALE_MIN)) / SCALE_STEP), 1, SCALE_LEVELS - 1).astype(np.int64)
        ungain = np.exp(at(m.log_ungain))
        self.ungain = np.rint(ungain * (MEAN_UNIT / LATENT_UNIT) * 2048).astype(np.int64)
        assert self.ungain.max() < 65536, "a step is too large for 16 bits"
        self.gain = np.exp(at(m.log_gain)).astype(np.float32)

    def write_head(self):
        parts = [np.array([self.channels, self.hyper_channels, LEVELS, 1], "<u2"), self.scale_map.astype("<i2"),
                 self.scale_bias.astype("<i2"), self.context_scale.astype("<i2"), self.context_mean.astype("<i2"),
                 self.context_channel[np.triu_indices(self.channels, 1)].astype("i1"),
                 self.hyper_mean.astype("i1"), self.hyper_index.astype("u1"), self.ungain.astype("<u2"), self.gain.astype("<f4")]
        return b"".join(np.ascontiguousarray(p).tobytes() for p in parts)

    def code(self, y, z, mean, level):
        """One picture: scaled latent y (C, H, W) float, hyper-latent z (K, H/4, W/4) int, mean (C, H, W) int in 1/16 ->
        (symbols, scale indices, values V in 1/16). The loops of the format, vectorised."""
        c, h, w = y.shape
        index = np.einsum("pck,khw->cphw", self.scale_map, z)  # (C, 16, h, w)
        index = index.reshape(c, HYPER, HYPER, z.shape[1], z.shape[2]).transpose(0, 3, 1, 4, 2).reshape(c, h, w)
        index = index + self.scale_bias[level][:, None, None]
        first = np.add.outer(np.arange(h), np.arange(w)) % 2 == 0
        magnitudes = magnitude_table()
        small = shift_round(magnitudes, 3).astype(np.int32)
        known = np.zeros((c, h, w), np.int32)
        symbols, values = np.zeros((2, c, h, w), np.int64)

        def symbols_of(y, mean, index):
            i = np.clip(shift_round(index, 8), 0, SCALE_LEVELS - 1)
            s = np.rint(y - mean * MEAN_UNIT).astype(np.int64)
            return np.where(i == 0, 0, s), i

        for k in range(c):
            before = index[k] + shift_round(known[k], 1)
            s1, i1 = symbols_of(y[k], mean[k], before)
            p = np.pad(s1 * first, 1)
            around = np.stack([p[:-2, 1:-1], p[1:-1, :-2], p[1:-1, 2:], p[2:, 1:-1]])
            mean2 = mean[k] + shift_round((around * self.context_mean[k][:, None, None]).sum(0), 8)
            total = np.minimum(np.abs(around).sum(0), MAGNITUDE_MAX)
            s2, i2 = symbols_of(y[k], mean2, before + shift_round(self.context_scale[k] * magnitudes[total], 8))
            symbols[k], index[k] = np.where(first, s1, s2), np.where(first, i1, i2)
            values[k] = np.where(first, mean[k], mean2) + 16 * symbols[k]
            if symbols[k].any():
                told = small[np.minimum(np.abs(symbols[k]), MAGNITUDE_MAX)]
                known[k + 1 :] += self.context_channel[k, k + 1 :, None, None].astype(np.int32) * told
                np.clip(known[k + 1 :], -32768, 32767, out=known[k + 1 :])
        return symbols, index, values

    def dequantise(self, v, level):
        """Values in 1/16 -> latent in LATENT_UNIT, the input of the synthesis graph."""
        return np.clip(shift_round(v * self.ungain[level][:, None, None], 11), -LATENT_CLIP, LATENT_CLIP)


@torch.no_grad()
def analyse(model, integers, x, level):
    """Pixels (1, 3, H, W) -> (y scaled, z int, mean int) with the exact hyper-synthesis."""
    return scaled(model, integers, model.analysis(x).float(), level)


@torch.no_grad()
def scaled(model, integers, y, level):
    """As `analyse`, from the latent (1, C, H/16, W/16) before its gains."""
    y = y[0] * torch.from_numpy(integers.gain[level])[:, None, None]
    z = torch.round(model.hyper_analysis(y[None]).float()).clamp(-127, 127)
    mean = torch.round(model.hyper_synthesis(z)[0] / MEAN_UNIT).numpy().astype(np.int64)
    return y.numpy().astype(np.float64), z[0].numpy().astype(np.int64), mean


def gaussian_mass(scale, low, high):
    edges = torch.arange(low, high + 2, dtype=torch.float64) - 0.5
    cdf = 0.5 * torch.erfc(-edges / (scale * math.sqrt(2)))
    return (cdf[1:] - cdf[:-1]).numpy()


def fit(model, batches, levels_per_batch=3, seed=3):
    """Frequency tables from the symbols of training crops: the histogram of each scale index over a Gaussian prior."""
    integers = Integers(model)
    random = np.random.default_rng(seed)
    half = 400
    counts = np.zeros((SCALE_LEVELS, 2 * half + 1))
    for batch in batches:
        for x in batch:
            for level in random.integers(0, LEVELS, levels_per_batch):
                y, z, mean = analyse(model, integers, x[None], level)
                s, i, _ = integers.code(y, z, mean, level)
                np.add.at(counts, (i.ravel(), np.clip(s, -half, half).ravel() + half), 1)
    tables = []
    for index in range(SCALE_LEVELS):
        scale = math.exp(math.log(SCALE_MIN) + index * SCALE_STEP)
        reach = max(1, min(half, math.ceil(4.2 * scale + 1)))
        prior = gaussian_mass(scale, -half, half)
        # A few hundred pretended observations: they decide where little was seen.
        mass = counts[index] + 300 * (0.98 * prior + 0.02 / (2 * half + 1))
        mass = 0.5 * (mass + mass[::-1])
        mass /= mass.sum()
        inside = mass[half - reach : half + reach + 1]
        rest = max(1 - inside.sum(), 2e-5)
        frequencies = np.maximum(1, np.floor(inside / (inside.sum() + rest) * 65536)).astype(np.int64)
        spare = 65535 - max(1, round(rest * 65536)) + 1 - frequencies.sum()
        frequencies[reach] += spare
        assert frequencies.min() > 0 and frequencies.sum() < 65536
        tables.append((-reach, frequencies))
    return integers, tables


def write(integers, tables):
    out = bytearray(integers.write_head())
    out += bytes([len(tables)])
    for low, frequencies in tables:
        out += np.array([low], "<i2").tobytes() + np.array([len(frequencies)], "<u2").tobytes() + frequencies.astype("<u2").tobytes()
    return bytes(out)


def cost(tables):
    """Bits of symbol s under table i, as a function (escape: the table's cost plus a rough Exp-Golomb length)."""
    logs = [-np.log2(f / 65536) for _, f in tables]
    escape = [-np.log2(max(1, 65536 - f.sum()) / 65536) for _, f in tables]

    def bits(symbols, indices):
        total = 0.0
        for i in np.unique(indices):
            if i == 0:
                continue
            low, f = tables[i]
            s = symbols[indices == i] - low
            inside = (s >= 0) & (s < len(f))
            total += logs[i][s[inside]].sum() + (escape[i] + 8) * (~inside).sum()
        return total

    return bits
