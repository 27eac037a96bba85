"""The integer side of the entropy model: what the bundle's `tables.bin` holds, fitted after training.

Everything a decoder needs to choose a table is an integer here, with the arithmetic of docs/FORMAT.md. The layout of
`tables.bin`, little endian, arrays in C order:

    u16 channels C, u16 hyper_channels K, u16 levels L, u16 LAYOUT
    i16 scale_map[16][C][K]      1/256 scale index for each unit of the hyper-latent; first index 4 * dy + dx
    i16 scale_bias[L][C]         1/256 scale index
    i16 context_scale[C]         1/256
    i16 context_mean[C][4]       1/256 of 1/16 for each unit of a neighbour's symbol: above, left, right, below
    i8  context_channel[C (C - 1) / 2]   1/16 scale index for each unit of ln(1 + |symbol|): for each channel those on the channels behind it
    i8  hyper_mean[L][K]         the likeliest hyper-latent, in 1/4
    i16 hyper_scale[L][K]        1/256 scale index
    i8  hyper_context_mean[K][3][K]   1/64: what the channels above say, those to the left, those before
    i8  hyper_context_scale[K][3][K]  1/16 scale index for each unit of ln(1 + 4 |what a value is from its hyper_mean|)
    u16 ungain[L][C]             1/2048 of 1/64 for each 1/16: step of the latent
    f32 gain[L][C]               for encoders: 1 / step
    the frequency tables, as `CdfSet` lays them out
"""

import math

import numpy as np
import torch

from model import HYPER, HYPER_CLIP, HYPER_UNIT, SCALE_LEVELS, SCALE_MIN, SCALE_STEP, STRENGTH, MEAN_UNIT, LATENT_UNIT, LATENT_CLIP

LAYOUT = 2
LEVELS = 101
INDEX_UNIT = 256
CHANNEL_UNIT = 16  # of context_channel and hyper_context_scale
WEIGHT_UNIT = 64  # of hyper_context_mean
MAGNITUDE_MAX = 31
HALF = 400  # symbols farther from 0 are not counted apart


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
        clip8 = lambda x: np.clip(np.rint(x), -128, 127).astype(np.int64)
        self.scale_map = clip16(weight.reshape(c, 16, k).transpose(1, 0, 2) * HYPER_UNIT * per_index)
        # index = (ln scale - ln SCALE_MIN) / SCALE_STEP
        self.scale_bias = clip16((at(m.scale_bias) - math.log(SCALE_MIN)) * per_index)
        self.context_scale = clip16(m.context_scale.detach().numpy() / SCALE_STEP * 256)
        self.context_mean = clip16(m.context_mean.detach().numpy() / MEAN_UNIT * 256)
        # (channel that is known, channel of which it says something)
        self.context_channel = clip8(m.context_channel.detach().tril(-1).T.numpy() / SCALE_STEP * CHANNEL_UNIT)
        self.hyper_mean = np.clip(np.rint(at(m.hyper_mean) / HYPER_UNIT), -HYPER_CLIP, HYPER_CLIP).astype(np.int64)
        self.hyper_scale = clip16((at(m.hyper_log_scale) - math.log(SCALE_MIN)) * per_index)
        known = m.before.numpy()
        self.hyper_context_mean = clip8(m.hyper_context_mean.detach().numpy() * known * WEIGHT_UNIT)
        self.hyper_context_scale = clip8(m.hyper_context_scale.detach().numpy() * known / SCALE_STEP * CHANNEL_UNIT)
        ungain = np.exp(at(m.log_ungain))
        self.ungain = np.rint(ungain * (MEAN_UNIT / LATENT_UNIT) * 2048).astype(np.int64)
        assert self.ungain.max() < 65536, "a step is too large for 16 bits"
        self.gain = np.exp(at(m.log_gain)).astype(np.float32)

    def write_head(self):
        parts = [np.array([self.channels, self.hyper_channels, LEVELS, LAYOUT], "<u2"), self.scale_map.astype("<i2"),
                 self.scale_bias.astype("<i2"), self.context_scale.astype("<i2"), self.context_mean.astype("<i2"),
                 self.context_channel[np.triu_indices(self.channels, 1)].astype("i1"),
                 self.hyper_mean.astype("i1"), self.hyper_scale.astype("<i2"),
                 self.hyper_context_mean.astype("i1"), self.hyper_context_scale.astype("i1"), self.ungain.astype("<u2"), self.gain.astype("<f4")]
        return b"".join(np.ascontiguousarray(p).tobytes() for p in parts)

    def code_hyper(self, z, level):
        """The hyper-latent z (K, H/4, W/4) float of one picture -> (the same as it is coded, int in 1/4; symbols; scale indices)."""
        k, h, w = z.shape
        start, scale = self.hyper_mean[level], self.hyper_scale[level]
        small = shift_round(magnitude_table(), 3)
        coded, symbols, index = np.zeros((3, k, h, w), np.int64)
        known = np.zeros((h + 1, w + 1, k), np.int64)  # how far values are from `start`, and a border of zeros
        for y in range(h):
            for x in range(w):
                seen = np.concatenate([known[y, x + 1], known[y + 1, x], np.zeros(k, np.int64)])
                told = small[np.minimum(np.abs(seen), MAGNITUDE_MAX)]
                for c in range(k):
                    mean = np.clip(start[c] + shift_round(self.hyper_context_mean[c] @ seen, 6), -HYPER_CLIP, HYPER_CLIP)
                    i = np.clip(shift_round(scale[c] + shift_round(self.hyper_context_scale[c] @ told, 1), 8), 0, SCALE_LEVELS - 1)
                    s = np.rint(z[c, y, x] - mean * HYPER_UNIT) if i > 0 else 0
                    s = int(np.clip(s, -((HYPER_CLIP + mean) // 4), (HYPER_CLIP - mean) // 4))
                    coded[c, y, x], symbols[c, y, x], index[c, y, x] = mean + 4 * s, s, i
                    seen[2 * k + c] = coded[c, y, x] - start[c]
                    told[2 * k + c] = small[min(abs(seen[2 * k + c]), MAGNITUDE_MAX)]
                known[y + 1, x + 1] = seen[2 * k :]
        return coded, symbols, index

    def code(self, y, z, mean, level, bits=None):
        """One picture: scaled latent y (C, H, W) float, hyper-latent z (K, H/4, W/4) int in 1/4, mean (C, H, W) int in 1/16 ->
        (symbols, scale indices, values V in 1/16). The loops of the format, vectorised. Symbols are the nearest ones, or with `bits`
        (scale index, magnitude), what a symbol costs, those that the encoder takes."""
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
            wanted = y - mean * MEAN_UNIT
            s = np.rint(wanted).astype(np.int64)
            if bits is not None:
                cost = lambda s: np.square(wanted - s) + STRENGTH * bits[i, np.minimum(np.abs(s), HALF)]
                smaller = s - np.sign(s)
                s = np.where(cost(smaller) < cost(s), smaller, s)
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
    """Pixels (1, 3, H, W) -> (y scaled, z int in 1/4, mean int in 1/16) with the exact hyper-synthesis."""
    y = model.analysis(x).float()[0] * torch.from_numpy(integers.gain[level])[:, None, None]
    z, _, _ = integers.code_hyper(model.hyper_analysis(y[None])[0].double().numpy(), level)
    mean = model.hyper_synthesis(torch.from_numpy(z[None].astype(np.float32) * HYPER_UNIT))
    return y.numpy().astype(np.float64), z, torch.round(mean[0] / MEAN_UNIT).numpy().astype(np.int64)


def scale_of(index):
    return math.exp(math.log(SCALE_MIN) + index * SCALE_STEP)


def gaussian_mass(index):
    """Of the symbols from -HALF to HALF at a scale index."""
    edges = torch.arange(-HALF, HALF + 2, dtype=torch.float64) - 0.5
    cdf = 0.5 * torch.erfc(-edges / (scale_of(index) * math.sqrt(2)))
    return (cdf[1:] - cdf[:-1]).numpy()


def bits_of(mass):
    """Masses (scale index, symbols from -HALF to HALF) -> bits (scale index, magnitude)."""
    return -np.log2(np.maximum(mass[:, HALF:], 1e-9))


def gaussian_bits():
    return bits_of(np.stack([gaussian_mass(index) for index in range(SCALE_LEVELS)]))


def masses(model, integers, crops, bits, levels_per_crop, random):
    """How often each symbol comes at each scale index, over a Gaussian prior."""
    counts = np.zeros((SCALE_LEVELS, 2 * HALF + 1))
    for x in crops:
        for level in random.integers(0, LEVELS, levels_per_crop):
            y, z, mean = analyse(model, integers, x[None], level)
            s, i, _ = integers.code(y, z, mean, level, bits)
            np.add.at(counts, (i.ravel(), np.clip(s, -HALF, HALF).ravel() + HALF), 1)
    # A few hundred pretended observations: they decide where little was seen.
    prior = np.stack([gaussian_mass(index) for index in range(SCALE_LEVELS)])
    mass = counts + 300 * (0.98 * prior + 0.02 / (2 * HALF + 1))
    mass = mass + mass[:, ::-1]
    return mass / mass.sum(1, keepdims=True)


def fit(model, batches, levels_per_crop=3, seed=3):
    """Frequency tables from the symbols of training crops. What an encoder takes depends on what it costs: a quarter of the crops tell
    that first."""
    integers = Integers(model)
    random = np.random.default_rng(seed)
    crops = [x for batch in batches for x in batch]
    few = max(1, len(crops) // 4)
    mass = masses(model, integers, crops[:few], gaussian_bits(), levels_per_crop, random)
    mass = masses(model, integers, crops[few:], bits_of(mass), levels_per_crop, random)
    tables = []
    for index in range(SCALE_LEVELS):
        reach = max(1, min(HALF, math.ceil(4.2 * scale_of(index) + 1)))
        inside = mass[index, HALF - reach : HALF + reach + 1]
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


def with_gain(old, integers):
    """A `tables.bin` with the gains of another encoder, which are the last of its head; all else must be what it was."""
    head = integers.write_head()
    start = len(head) - integers.gain.nbytes
    if old[:start] != head[:start]:
        raise SystemExit("the checkpoint and the bundle are not of the same decoder")
    return head + old[len(head) :]
