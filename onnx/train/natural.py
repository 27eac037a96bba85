"""Trains the `natural` decoder of a generation: the bitstream, the encoder and the tables stay, only `synthesis` is tuned for looks.

    python natural.py --config natural.toml --checkpoint ../models/sdl-7.pt --images ../../../shared/images/train \
        --features ../../../shared/models/perceptual/squeezenet11_distance.onnx --out /tmp/natural --minutes 20 --compile

The losses are a feature distance, the squared error over that of the fidelity decoder, MS-SSIM and, in the later part, a patch
discriminator that sees a picture together with the fidelity decoder's. Text is masked out of the adversarial part: see `strokes`. The
encoder does not change, so crops are encoded once and kept as integers; a step costs the synthesis and the networks that judge it.
The same command goes on where an interrupted run stopped.
"""

import argparse
import copy
import math
import pathlib

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils.parametrizations import spectral_norm

import data
import metrics
from carry import carry
from features import FeatureDistance
from gptq import ROUNDING, compensate_part
from model import LATENT_CLIP, LATENT_UNIT, STRENGTH, load, load_natural
from muon import Muon
from quant import set_quantising
from run import Run, learning_rate, set_rates, smooth

PATCH = 8  # pixels for each position of the discriminator's output, each way


class Discriminator(nn.Module):
    """A picture and the fidelity decoder's (N, 3, H, W) each -> logits (N, 1, H / 8, W / 8), more for an original."""

    def __init__(self, width=24):
        super().__init__()
        sizes = (6, width, 2 * width, 4 * width)
        self.down = nn.ModuleList(spectral_norm(nn.Conv2d(a, b, 4, 2, 1)) for a, b in zip(sizes, sizes[1:]))
        self.head = spectral_norm(nn.Conv2d(4 * width, 1, 3, padding=1))

    def forward(self, x, fidelity):
        # What the fidelity decoder lacks is small beside the picture: show it by itself.
        x = torch.cat([2 * x - 1, 4 * (x - fidelity)], 1)
        for conv in self.down:
            x = F.leaky_relu(conv(x), 0.2)
        return self.head(x)


def strokes(picture, window=16):
    """Text, by a rule of thumb: (H, W, 3) bytes -> (H / 8, W / 8) bool, where a neighbourhood of `window` pixels has high contrast and
    nearly all of it lies at one of two levels. It takes line drawings and window frames along, and some sharp edges of flat areas."""
    luma = metrics.luma(picture.permute(2, 0, 1)[None].float() / 255)
    pad = (window - PATCH) // 2
    parts = F.unfold(F.pad(luma, (pad,) * 4, mode="replicate"), window, stride=PATCH)[0]  # (window^2, positions)
    low, high = parts.amin(0), parts.amax(0)
    reach = 0.2 * (high - low)
    dark, light = ((parts < low + reach).float().mean(0), (parts > high - reach).float().mean(0))
    found = (high - low > 0.4) & (dark + light > 0.75) & (dark > 0.06) & (light > 0.06)
    return found.view(picture.shape[0] // PATCH, picture.shape[1] // PATCH)


class Encoded:
    """Crops and their latents as the frozen encoder writes them: pixels (N, S, S, 3) uint8, text (N, S/8, S/8) bool, latents
    (N, levels, C, S/16, S/16) int16 in LATENT_UNIT."""

    def __init__(self, pixels, text, latents):
        self.pixels, self.text, self.latents = pixels, text, latents

    @classmethod
    @torch.no_grad()
    def make(cls, model, crops, levels):
        """`crops` (N, S, S, 3) uint8, `levels` (N, k) from 0 to 1."""
        model.strength, latents = STRENGTH, []
        for pixels, level in zip(crops.split(16), levels.float().split(16)):
            y = model.analysis(pixels.permute(0, 3, 1, 2).float() / 255)
            units = [torch.round(model.code(y, one)[0] / LATENT_UNIT) for one in level.unbind(1)]
            latents.append(torch.stack(units, 1).clamp(-LATENT_CLIP, LATENT_CLIP).to(torch.int16))
        return cls(crops, torch.stack([strokes(c) for c in crops]), torch.cat(latents))

    def get(self, which, level, device):
        """-> pixels (n, 3, S, S) in [0, 1], text (n, 1, S/8, S/8) in {0, 1}, latent (n, C, S/16, S/16)"""
        which, level = torch.as_tensor(which), torch.as_tensor(level)
        pixels = self.pixels[which].to(device).permute(0, 3, 1, 2).float() / 255
        latent = self.latents[which, level].to(device).float() * LATENT_UNIT
        return pixels, self.text[which].to(device)[:, None].float(), latent.contiguous(memory_format=torch.channels_last)


def encode(model, args, config):
    """(training crops, held-out crops), from the folder of the run if it has them."""
    kept = pathlib.Path(args.out) / "crops.pt"
    if kept.exists():
        return (Encoded(*part) for part in torch.load(kept))
    c = config["data"]
    random = np.random.default_rng(config["seed"])
    pictures = data.load_shards(args.images, args.limit)
    # One more is left out: it may be a smaller copy of the first one that is held out.
    train, held = pictures[: -c["held_out"] - 1], pictures[-c["held_out"] :]
    source = data.Crops(train, c["crop"], config["seed"])
    crops = source.draw(c["crops"])
    low, high = c["low"]
    levels = np.where(random.random((c["crops"], c["levels"])) < c["low_share"],
                      random.uniform(low, high, (c["crops"], c["levels"])), random.random((c["crops"], c["levels"])))  # fmt: skip
    middle = lambda p: p[(p.shape[0] - c["crop"]) // 2 :, (p.shape[1] - c["crop"]) // 2 :][: c["crop"], : c["crop"]]
    at = torch.tensor(config["held_out"]["levels"]).expand(len(held), -1)
    parts = [Encoded.make(model, crops, torch.from_numpy(levels)), Encoded.make(model, torch.stack([middle(p) for p in held]), at)]
    torch.save([(p.pixels, p.text, p.latents) for p in parts], kept)
    return parts


class Losses:
    """What a decoded picture is worth, without the discriminator."""

    def __init__(self, config, feature, ms_ssim):
        self.config, self.feature, self.ms_ssim = config, feature, ms_ssim

    def __call__(self, picture, x, fidelity, text, shift=(0, 0)):
        """-> (loss, feature distance, squared error over that of `fidelity`, MS-SSIM), each (N)"""
        c = self.config
        # Text must stay where it is: its error counts twice.
        weight = 1 + F.interpolate(text, scale_factor=PATCH)
        error = lambda a: (weight * (a - x).square()).mean((1, 2, 3)) / weight.mean((1, 2, 3)) * 255**2
        mse = (error(picture) + c["mse_floor"]) / (error(fidelity) + c["mse_floor"])
        # The networks' strides see the pixels in another phase every time: no pattern can hide between their samples.
        dy, dx = shift
        crop = lambda a: a[:, :, dy : a.shape[2] - 8 + dy, dx : a.shape[3] - 8 + dx].contiguous(memory_format=torch.channels_last)
        feature = self.feature(crop(picture), crop(x))
        similarity = self.ms_ssim(metrics.luma(picture), metrics.luma(x), coarse=True)
        return c["feature"] * feature + c["mse"] * mse + c["ms_ssim"] * (1 - similarity), feature, mse, similarity


@torch.no_grad()
def measure(synthesis, fidelity, held, losses, config, device):
    """Means over the held-out crops, for each level."""
    rows = {}
    for k, level in enumerate(config["held_out"]["levels"]):
        rows[level] = []
        for first in range(0, len(held.pixels), 8):
            which = np.arange(first, min(first + 8, len(held.pixels)))
            x, text, y = held.get(which, np.full(len(which), k), device)
            picture, other = synthesis(y).clamp(0, 1), fidelity(y).clamp(0, 1)
            loss, feature, _, similarity = losses(picture, x, other, text)
            db = [-10 * torch.log10((p - x).square().mean((1, 2, 3))) for p in (picture, other)]
            rows[level].append(torch.stack([loss, feature, similarity, db[0], db[0] - db[1]], 1))
    names = ("loss", "feature", "ms_ssim", "psnr", "psnr_change")
    table = {str(level): dict(zip(names, (round(v, 4) for v in torch.cat(r).mean(0).tolist()))) for level, r in rows.items()}
    return float(np.mean([r["loss"] for r in table.values()])), table


def finish(run, natural, crops, measured):
    """The best weights, rounded, and what they are worth."""
    run.load_weights("float.pt", natural)
    some = [crops.get(which, which % crops.latents.shape[1], run.args.device)[2] for which in torch.arange(len(crops.pixels))[: 16 * ROUNDING].split(16)]
    compensate_part(natural, some, [torch.ones(len(y), device=run.args.device) for y in some])
    loss, table = measured()
    run.log({"step": run.step, "held_out_loss": round(loss, 5), "rounded": True, "levels": table})
    run.save_weights("natural.pt", natural, held_out=table)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--checkpoint", required=True, help="of train.py, quantised: the encoder and the first weights")
    p.add_argument("--features", required=True, help="squeezenet11_distance.onnx")
    p.add_argument("--earlier", nargs=2, metavar=("NATURAL", "CHECKPOINT"), help="the natural decoder of the generation before, and what it was tuned from: begin with what it has learnt")
    run = Run.of(p)
    args, config = run.args, run.config
    o, weights = config["optimiser"], config["loss"]

    model = run.quantised_model(args.checkpoint)
    crops, held = encode(model, args, config)
    # Channels last: a third less time on a CPU.
    fidelity = model.synthesis.to(args.device, memory_format=torch.channels_last)
    # Gradients that go straight through the rounding of weights do them no good: they are rounded when all else is done.
    set_quantising(fidelity, True, weights=False)
    natural = copy.deepcopy(fidelity).requires_grad_(True)
    if args.earlier:
        tuned, before = args.earlier[0], load(args.earlier[1])
        carry(natural, before.synthesis, load_natural(tuned, before))
    ema = copy.deepcopy(natural).requires_grad_(False)
    judge = Discriminator().to(args.device, memory_format=torch.channels_last)
    matrices = [p for p in natural.parameters() if p.dim() == 4 and p.shape[2] == 1]
    rest = [p for p in natural.parameters() if all(p is not m for m in matrices)]
    optims = {"adam": torch.optim.Adam(rest, lr=o["adam"], betas=(0.9, 0.99)), "muon": Muon(matrices, lr=o["muon"]),
              "discriminator": torch.optim.Adam(judge.parameters(), lr=o["discriminator"], betas=(0.5, 0.99))}  # fmt: skip
    feature = FeatureDistance(args.features).to(args.device)
    losses = Losses(weights, run.forward(feature), torch.compile(metrics.ms_ssim) if args.compile else metrics.ms_ssim)
    forward, forward_fidelity, forward_ema, forward_judge = map(run.forward, (natural, fidelity, ema, judge))
    state = run.resume({"natural": natural, "ema": ema, "judge": judge, **optims}, {"mean": None, "best": math.inf, "ratio": None})
    random = run.random

    def held_out(share):
        loss, table = measure(forward_ema, forward_fidelity, held, losses, config, args.device)
        best = share >= weights["adversarial_full"] and loss < state["best"]
        if best:
            state["best"] = loss
            run.save_weights("float.pt", ema, held_out=table)
        run.log({"step": run.step, "held_out_loss": round(loss, 5), "best": best, "levels": table})

    if run.step == 0:
        held_out(0.0)
    while not run.over():
        share = run.share()
        set_rates(optims.values(), learning_rate(share, o["warm"], o["decay_at"]))
        which = random.integers(0, len(crops.pixels), o["batch"])
        x, text, y = crops.get(which, random.integers(0, crops.latents.shape[1], o["batch"]), args.device)
        with torch.no_grad():
            other = forward_fidelity(y).clamp(0, 1)
        picture = forward(y)
        # Gradients on the pixels, by themselves: their sizes give the weight of the adversarial one.
        pixels = picture.detach().clamp(-0.05, 1.05).requires_grad_(True)
        shift = tuple(random.integers(0, 9, 2).tolist())
        loss, feature, mse, similarity = (v.mean() for v in losses(pixels, x, other, text, shift))
        gradient = torch.autograd.grad(loss, pixels)[0]
        begin, full = weights["adversarial_from"], weights["adversarial_full"]
        adversarial = weights["adversarial"] * min(1.0, max(0.0, (share - begin) / (full - begin)))
        d_loss = torch.zeros(())
        if share > begin - 0.05:  # the discriminator has a start
            open_ = 1 - text
            mean = lambda v: (v * open_).sum() / open_.sum().clamp_min(1)
            judged = pixels.detach().requires_grad_(adversarial > 0)
            optims["discriminator"].zero_grad(set_to_none=True)
            d_real, d_fake = forward_judge(x, other), forward_judge(judged.detach(), other)
            d_loss = mean(F.relu(1 - d_real)) + mean(F.relu(1 + d_fake))
            d_loss.backward()
            optims["discriminator"].step()
            if adversarial > 0:
                pull = torch.autograd.grad(-mean(forward_judge(judged, other)), judged)[0]
                ratio = gradient.norm() / pull.norm().clamp_min(1e-12)
                state["ratio"] = ratio if state["ratio"] is None else state["ratio"].lerp(ratio, 0.05)
                gradient = gradient + adversarial * state["ratio"] * pull
        for name in ("adam", "muon"):
            optims[name].zero_grad(set_to_none=True)
        picture.backward(gradient)
        if run.advance(natural, ema, (optims["adam"], optims["muon"]), o["ema"]):
            state["mean"] = smooth(state["mean"], torch.stack([loss, feature, mse, similarity, d_loss]))
        if run.step % 50 == 0 and state["mean"] is not None:
            names = ("loss", "feature", "mse_over_fidelity", "ms_ssim", "discriminator")
            row = dict(zip(names, (round(v, 4) for v in state["mean"].tolist())))
            run.log({"step": run.step, "minutes": round(run.seconds() / 60, 2), **row, "adversarial": round(adversarial, 3)})
        if run.step % config["held_out"]["every"] == 0:
            held_out(share)
        run.keep(state)
    if run.share() >= 1:
        held_out(1.0)
    run.keep(state, last=True)
    if run.share() >= 1:
        finish(run, ema, crops, lambda: measure(ema, fidelity, held, losses, config, args.device))


if __name__ == "__main__":
    main()
