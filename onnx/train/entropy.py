"""Tunes the scales of a trained model on latents that are computed once, and on the symbols that an encoder makes of them when it weighs
error against bits: transforms, steps and means stay, so that a step costs a hundredth of what it costs in train.py.

    python entropy.py --config generation-5-entropy.toml --checkpoint /tmp/run/weights.pt --images ../../../shared/images/train --out /tmp/entropy --minutes 6
"""

import argparse
import copy

import torch

from model import STRENGTH, STRIDE, load
from run import Run, learning_rate, set_rates, smooth
from train import optimisers


@torch.no_grad()
def latents(model, crops, count, batch, device):
    """Of `count` crops: (count, C, H, W), fp16."""
    return torch.cat([model.analysis(crops.batch(batch).to(device)).half() for _ in range(count // batch)])


def rate(model, y, level, c):
    """(loss: bits a pixel, weighted as train.py does; bits a pixel)"""
    _, y_bits, z_bits = model.code(y, level)
    bpp = (y_bits + z_bits) / (y.shape[2] * y.shape[3] * STRIDE**2)
    return (bpp * model.lambda_of(level) ** c["lambda_power"]).mean(), bpp.mean()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--checkpoint", required=True, help="of train.py")
    Run.arguments(p)
    args = p.parse_args()
    run = Run(args)
    config = run.config
    o, stages = config["optimiser"], config["stages"]
    crops = run.crops()
    model = load(args.checkpoint).to(args.device, memory_format=torch.channels_last)
    known = latents(model, crops, config["data"]["crops"], o["batch"], args.device)
    print(f"{len(known)} latents", flush=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("scale_map.", "scale_bias", "context_scale", "context_channel", "hyper_mean", "hyper_log_scale")))
    model.strength = STRENGTH
    ema = copy.deepcopy(model).requires_grad_(False)
    optims = optimisers(model, o)
    mean = run.resume({"model": model, "ema": ema, **optims}, None)
    while not run.over():
        set_rates(optims.values(), learning_rate(run.share(), stages["full"], stages["decay"]))
        y = known[run.random.integers(0, len(known), o["batch"])].float()
        loss, bpp = rate(model, y, torch.rand(o["batch"], device=args.device), config["loss"])
        for optimiser in optims.values():
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if run.advance(model, ema, optims.values(), o["ema"]):
            mean = smooth(mean, torch.stack([loss, bpp]))
        if run.step % 50 == 0 and mean is not None:
            run.log({"step": run.step, "minutes": round(run.seconds() / 60, 2), **dict(zip(("loss", "bpp"), (round(v, 5) for v in mean.tolist())))})
        run.keep(mean, ema)
    run.keep(mean, ema, last=True)


if __name__ == "__main__":
    main()
