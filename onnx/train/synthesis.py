"""Tunes the synthesis of a quantised model on latents as files have them: everything else stays, and so does every symbol.

    python synthesis.py --config synthesis.toml --checkpoint /tmp/run/weights.pt --images ../../../shared/images/train --out /tmp/tuned --minutes 20
"""

import argparse
import copy
import math

import torch

import metrics
from gptq import ROUNDING, compensate_part
from model import LATENT_UNIT
from quant import level_channels, set_quantising
from refine import Refiner
from run import Run, learning_rate, set_rates, smooth
from train import distortion_of, optimisers


class Latents:
    """Crops (N, S, S, 3) uint8, their levels (N), and their latents (N, C, S/16, S/16) int16 in LATENT_UNIT: of every other batch refined."""

    def __init__(self, model, synthesis, crops, config, device):
        count, batch, loss = config["data"]["crops"], config["optimiser"]["batch"], config["loss"]
        kept, refiner = [], Refiner(model, synthesis, loss)
        for i in range(count // batch):
            pixels, level = crops.draw(batch), torch.rand(batch)
            latent = refiner(self.shown(pixels, device), level.to(device), loss["refinement"] * (i % 2)).latent
            kept.append((pixels, level, torch.round(latent / LATENT_UNIT).to(torch.int16).cpu()))
        self.pixels, self.level, self.latent = map(torch.cat, zip(*kept))

    @staticmethod
    def shown(pixels, device):
        return pixels.to(device).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last).float() / 255

    def get(self, which, device):
        """-> pictures (n, 3, S, S) in [0, 1], levels (n), latents (n, C, S/16, S/16)"""
        latent = self.latent[which].to(device).float() * LATENT_UNIT
        return self.shown(self.pixels[which], device), self.level[which].to(device), latent.contiguous(memory_format=torch.channels_last)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--checkpoint", required=True, help="of train.py or entropy.py, quantised")
    run = Run.of(p)
    args, config = run.args, run.config
    o, stages, c = config["optimiser"], config["stages"], config["loss"]
    crops = run.crops()
    model = run.quantised_model(args.checkpoint).to(args.device, memory_format=torch.channels_last)
    set_quantising(model.synthesis, True, weights=False)
    forward = run.forward(model.synthesis)
    if args.compile:
        metrics.ms_ssim = torch.compile(metrics.ms_ssim)
    known = Latents(model, forward, crops, config, args.device)
    print(f"{len(known.level)} latents", flush=True)
    look = crops.batch(2 * o["batch"]).to(args.device), torch.linspace(0, 1, 2 * o["batch"], device=args.device)
    print(f"{level_channels([model], *look, parts=['synthesis'])} channels have another range", flush=True)
    model.synthesis.requires_grad_(True)
    ema = copy.deepcopy(model).requires_grad_(False)
    optims = optimisers(model, o)
    state = run.resume({"model": model, "ema": ema, **optims}, {"mean": None, "best": math.inf})
    trained = len(known.level) - config["data"]["held_out"]

    def losses(synthesis, which):
        """(loss, squared error in grey levels, 1 - MS-SSIM) of some of the latents."""
        x, level, latent = known.get(which, args.device)
        distortion, mse, similarity = distortion_of(synthesis(latent), x, c)
        return torch.stack([(distortion * model.lambda_of(level) ** (1 + c["lambda_power"])).mean(), mse.mean(), 1 - similarity.mean()])

    @torch.no_grad()
    def held_out():
        """What a decoder learns may be of use for the latents that it sees alone: the best weights are those that are best for others."""
        parts = torch.arange(trained, len(known.level)).split(o["batch"])
        loss = torch.stack([losses(ema.synthesis, part)[0] for part in parts]).mean().item()
        if loss < state["best"]:
            state["best"] = loss
            run.save_weights("float.pt", ema)
        run.log({"step": run.step, "held_out_loss": round(loss, 5)})

    if run.step == 0:
        held_out()
    while not run.over():
        set_rates(optims.values(), learning_rate(run.share(), stages["full"], stages["decay"]))
        for optimiser in optims.values():
            optimiser.zero_grad(set_to_none=True)
        found = losses(forward, run.random.integers(0, trained, o["batch"]))
        found[0].backward()
        if run.advance(model, ema, optims.values(), o["ema"]):
            state["mean"] = smooth(state["mean"], found)
        if run.step % 50 == 0 and state["mean"] is not None:
            row = dict(zip(("loss", "mse", "dissimilarity"), (round(v, 5) for v in state["mean"].tolist())))
            run.log({"step": run.step, "minutes": round(run.seconds() / 60, 2), **row})
        if run.step % config["data"]["look"] == 0:
            held_out()
        run.keep(state, ema)
    run.keep(state, ema, last=True)
    if run.share() >= 1:
        held_out()
        run.load_weights("float.pt", ema)
        some = [known.get(which, args.device) for which in torch.arange(len(known.level))[: 16 * ROUNDING].split(16)]
        compensate_part(ema.synthesis, [latent for _, _, latent in some], [model.lambda_of(level) ** (1 + c["lambda_power"]) for _, level, _ in some])
        run.save_weights("weights.pt", ema)


if __name__ == "__main__":
    main()
