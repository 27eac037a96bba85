"""Tunes the hyper-latent of a quantised model, what is made of it (means and scales) and how it is coded itself, on latents that are
computed once: transforms and steps stay, so that a step costs a hundredth of what it costs in train.py.

    python entropy.py --config entropy.toml --checkpoint /tmp/run/weights.pt --images ../../../shared/images/train --out /tmp/entropy --minutes 20
"""

import argparse
import copy

import torch

from gptq import ROUNDING, compensate_hyper
from model import STRENGTH, STRIDE
from quant import set_quantising
from run import Run, learning_rate, set_rates, smooth
from train import optimisers

TUNED = ("hyper_", "scale_", "context_")


@torch.no_grad()
def latents(model, crops, count, batch, device):
    """Of `count` crops: (count, C, H, W), fp16."""
    return torch.cat([model.analysis(crops.batch(batch).to(device)).half() for _ in range(count // batch)])


def rate(model, y, level, c):
    """(loss: bits a pixel, weighted as train.py does; bits a pixel, and those of the hyper-latent; squared error in symbols, a pixel).
    Means move what a latent is decoded to as well, above all where no symbol is coded: its error counts as in rounding."""
    scaled = y * torch.exp(model.at_level(model.log_gain, level))
    mean, symbols, y_bits, z_bits = model.symbols(scaled, level)
    error = (scaled - mean - symbols.detach()).square().sum((1, 2, 3))
    bpp, z_bpp, error = (v / (y.shape[2] * y.shape[3] * STRIDE**2) for v in (y_bits + z_bits, z_bits, error))
    weight = model.lambda_of(level) ** c["lambda_power"]
    return ((bpp + error / c["strength"]) * weight).mean(), bpp.mean(), z_bpp.mean(), error.mean()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--checkpoint", required=True, help="of train.py, quantised")
    run = Run.of(p)
    args, config = run.args, run.config
    o, stages = config["optimiser"], config["stages"]
    crops = run.crops()
    model = run.model(args.checkpoint).to(args.device)
    known = latents(model, crops, config["data"]["crops"], o["batch"], args.device)
    print(f"{len(known)} latents", flush=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(TUNED))
    model.strength = STRENGTH
    set_quantising(model.hyper_synthesis, True, weights=False)
    # Noise in the place of rounding, where bits are counted.
    model.train()
    ema = copy.deepcopy(model).requires_grad_(False)
    optims = optimisers(model, o)
    mean = run.resume({"model": model, "ema": ema, **optims}, None)
    while not run.over():
        set_rates(optims.values(), learning_rate(run.share(), stages["full"], stages["decay"]))
        y = known[run.random.integers(0, len(known), o["batch"])].float()
        loss, *parts = rate(model, y, torch.rand(o["batch"], device=args.device), config["loss"])
        for optimiser in optims.values():
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if run.advance(model, ema, optims.values(), o["ema"]):
            mean = smooth(mean, torch.stack([loss, *parts]))
        if run.step % 50 == 0 and mean is not None:
            row = dict(zip(("loss", "bpp", "z_bpp", "error"), (round(v, 5) for v in mean.tolist())))
            run.log({"step": run.step, "minutes": round(run.seconds() / 60, 2), **row})
        run.keep(mean, ema)
    run.keep(mean, ema, last=True)
    if run.share() >= 1:
        ema.eval()
        run.save_weights("float.pt", ema)
        some = [y.float() for y in known[: 16 * ROUNDING].split(16)]
        compensate_hyper(ema, some, [torch.linspace(0, 1, len(y), device=args.device) for y in some])
        run.save_weights("weights.pt", ema)


if __name__ == "__main__":
    main()
