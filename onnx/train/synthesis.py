"""Tunes the synthesis of a quantised model: encoder, hyper path, scales and tables stay, and so does every file.

    python synthesis.py --config generation-3-synthesis.toml --checkpoint /tmp/run/weights.pt --images ../../../shared/images/train --out /tmp/tuned --minutes 20

All channels of a tensor share one scale for their bytes, so that those with small values have few levels: before it begins, channels
of the renderer are multiplied by a power of two where that makes the squared error of their rounding less, clipping included.
"""

import argparse
import copy

import torch

import data
import metrics
from model import load
from quant import entering
from run import Run, learning_rate, set_rates, smooth
from train import loss_of, optimisers

FACTORS = (0.5, 1.0, 2.0, 4.0)


@torch.no_grad()
def level_channels(model, x, level):
    """Powers of two for the channels behind `up` and behind the depthwise layer; what reads them takes them back. Returns how many changed."""
    synthesis, count = model.synthesis, 0
    for writer, activation, reader in ((synthesis.up, synthesis.out_up, synthesis.dw), (synthesis.dw, synthesis.act_dw, synthesis.c)):
        _, values = entering(activation, model, x, level)
        channels = reader.in_channels
        values = values.transpose(0, 1).reshape(channels, -1)  # those of `up` lie sixteen to a channel
        low, high = activation.bounds()
        rounded = lambda v: torch.round(v / activation.scale).clamp(low, high) * activation.scale
        errors = torch.stack([(rounded(f * values) / f - values).square().mean(1) for f in FACTORS])
        factor = torch.tensor(FACTORS, device=x.device)[errors.argmin(0)]
        count += (factor != 1).sum().item()
        of_writer = factor.repeat_interleave(writer.out_channels // channels)
        writer.weight.mul_(of_writer[:, None, None, None])
        writer.bias.mul_(of_writer)
        reader.weight.div_(factor[:, None, None, None] if reader.groups > 1 else factor[None, :, None, None])
    return count


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--checkpoint", required=True, help="of train.py, quantised")
    Run.arguments(p)
    args = p.parse_args()
    run = Run(args)
    config = run.config
    o, stages = config["optimiser"], config["stages"]
    crops = data.Crops(data.load_shards(args.images, args.limit, config["data"]["shrink"], config["data"]["least"]), config["data"]["crop"], run.random)
    model = load(args.checkpoint).to(args.device, memory_format=torch.channels_last)
    if not model.synthesis.stem.quantising:
        raise SystemExit(f"{args.checkpoint} is not quantised yet")
    look = crops.batch(2 * o["batch"]).to(args.device), torch.linspace(0, 1, 2 * o["batch"], device=args.device)
    print(f"{level_channels(model, *look)} channels have another range", flush=True)
    # In evaluation nothing is noise: the synthesis sees what a file would give it.
    model.synthesis.requires_grad_(True)
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


if __name__ == "__main__":
    main()
