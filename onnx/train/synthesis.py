"""Tunes the synthesis of a quantised model and the steps of its latent: encoder, hyper path and scales stay, and so does every symbol.

    python synthesis.py --config generation-5-synthesis.toml --checkpoint /tmp/run/weights.pt --images ../../../shared/images/train --out /tmp/tuned --minutes 20
"""

import argparse
import copy

import torch

import metrics
from gptq import ROUNDING, compensate
from model import STRENGTH, load
from quant import level_channels, set_quantising
from run import Run, learning_rate, set_rates, smooth
from train import loss_of, optimisers


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--checkpoint", required=True, help="of train.py, quantised")
    Run.arguments(p)
    args = p.parse_args()
    run = Run(args)
    config = run.config
    o, stages = config["optimiser"], config["stages"]
    crops = run.crops()
    model = load(args.checkpoint).to(args.device, memory_format=torch.channels_last)
    if not model.synthesis.stem.quantising:
        raise SystemExit(f"{args.checkpoint} is not quantised yet")
    look = crops.batch(2 * o["batch"]).to(args.device), torch.linspace(0, 1, 2 * o["batch"], device=args.device)
    print(f"{level_channels([model], *look, encoder=False)} channels have another range", flush=True)
    # In evaluation nothing is noise: the synthesis sees what a file would give it.
    model.strength = STRENGTH
    set_quantising(model.synthesis, True, weights=False)
    model.synthesis.requires_grad_(True)
    model.log_ungain.requires_grad_(True)
    ema = copy.deepcopy(model).requires_grad_(False)
    optims = optimisers(model, o)
    mean = run.resume({"model": model, "ema": ema, **optims}, None)
    forward = torch.compile(model) if args.compile else model
    if args.compile:
        metrics.ms_ssim = torch.compile(metrics.ms_ssim)
    while not run.over():
        set_rates(optims.values(), learning_rate(run.share(), stages["full"], stages["decay"]))
        for optimiser in optims.values():
            optimiser.zero_grad(set_to_none=True)
        x = crops.batch(o["batch"]).to(args.device)
        loss, bpp, mse, similarity, _ = loss_of(model, forward, x, torch.rand(o["batch"], device=args.device), config["loss"])
        loss.backward()
        if run.advance(model, ema, optims.values(), o["ema"]):
            mean = smooth(mean, torch.stack([loss, bpp, mse, 1 - similarity]))
        if run.step % 50 == 0 and mean is not None:
            row = dict(zip(("loss", "bpp", "mse", "dissimilarity"), (round(v, 5) for v in mean.tolist())))
            run.log({"step": run.step, "minutes": round(run.seconds() / 60, 2), **row})
        run.keep(mean, ema)
    run.keep(mean, ema, last=True)
    if run.share() >= 1:
        compensate(ema, [crops.batch(16).to(args.device) for _ in range(ROUNDING)], 1 + config["loss"]["lambda_power"], ["synthesis"])
        run.save_weights("weights.pt", ema)


if __name__ == "__main__":
    main()
