"""Trains the built-in model: one configuration, one command, resumable.

    python train.py --images ../../../shared/images/train --out /tmp/run --minutes 70

The learning rate follows the share of the time that is spent, so that the same command makes sense for 2 minutes and for
10 hours: warm-up, constant, cosine. Quantisation-aware training begins at `--quantise-at` of the time, inside the decay.
"""

import argparse
import copy
import json
import math
import pathlib
import time

import torch

import data
import metrics
import quant
from model import Model
from muon import Muon


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--images", required=True, help="folder of shard-*.tar")
    p.add_argument("--out", required=True, help="folder for checkpoints and the log")
    p.add_argument("--minutes", type=float, required=True)
    p.add_argument("--resume", help="checkpoint to go on from (weights; the schedule starts anew)")
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--crop", type=int, default=256)
    p.add_argument("--lr", type=float, default=1.5e-3)
    p.add_argument("--adam-lr", type=float, default=1.5e-3)
    p.add_argument("--optimiser", choices=["muon", "adam"], default="muon")
    p.add_argument("--decay-at", type=float, default=0.5)
    p.add_argument("--quantise-at", type=float, default=0.7)
    p.add_argument("--ssim", type=float, default=0.5, help="share of MS-SSIM in the distortion")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--limit", type=int, help="use this many pictures (dry runs)")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--ema", type=float, default=0.998)
    p.add_argument("--compile", action="store_true", help="compile the model: three times the speed on a CPU, after a minute")
    p.add_argument("--precision", choices=["bf16", "fp32"], help="of convolutions in floating point; default: bf16 on a GPU, where it is faster")
    p.add_argument("--steps", type=int, help="stop after this many steps, whatever the time (comparisons)")
    return p.parse_args()


def learning_rate(share, args):
    """Share of the time spent -> factor on the learning rate."""
    warm = min(1.0, share / 0.01)
    if share < args.decay_at:
        return warm
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (share - args.decay_at) / (1 - args.decay_at)))


def optimisers(model, args):
    matrices, rest = [], []
    for name, p in model.named_parameters():
        is_matrix = p.dim() == 4 and p.shape[2] == 1 and p.shape[1] > 1 and "scale_map" not in name
        (matrices if is_matrix and args.optimiser == "muon" else rest).append(p)
    # Logarithms of gains and scales have far to go: small networks around them settle sooner.
    tables = [p for p in rest if p.dim() == 2 and p.shape[0] == model.anchors]
    others = [p for p in rest if all(p is not t for t in tables)]
    groups = [{"params": others}, {"params": tables, "lr": 4 * args.adam_lr}]
    result = [torch.optim.Adam(groups, lr=args.adam_lr, betas=(0.9, 0.99))]
    if matrices:
        result.append(Muon(matrices, lr=args.lr))
    for o in result:
        for g in o.param_groups:
            g["base"] = g["lr"]
    return result


def loss_of(model, forward, x, level, ssim_share):
    reconstruction, y_bits, z_bits = forward(x, level)
    reconstruction = reconstruction.float()
    pixels = x.shape[2] * x.shape[3]
    mse = (reconstruction - x).square().mean((1, 2, 3)) * 255**2
    similarity = metrics.ms_ssim(metrics.luma(reconstruction), metrics.luma(x), coarse=True)
    # 1330 brings 1 - MS-SSIM to the size of the squared error near 0.2 bits per pixel.
    distortion = (1 - ssim_share) * mse + ssim_share * 1330 * (1 - similarity)
    weight = model.lambda_of(level)
    bpp = (y_bits + z_bits) / pixels
    # The exponent gives the ends of the range of rates about the same share of the gradient.
    loss = ((bpp + weight * distortion) * weight**-0.65).mean()
    return loss, bpp.mean(), mse.mean(), similarity.mean(), (z_bits / pixels).mean()


def save(path, model, ema, step, args):
    torch.save({"ema": {k: v.half() if v.is_floating_point() and v.numel() > 1 else v for k, v in ema.state_dict().items()},
                "raw": model.state_dict(), "step": step, "args": vars(args)}, path)


def main():
    args = arguments()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    pictures = data.load_shards(args.images, args.limit)
    crops = data.Crops(pictures, args.crop, args.seed)
    model = Model().to(args.device).to(memory_format=torch.channels_last)
    quantised = False
    if args.resume:
        checkpoint = torch.load(args.resume, map_location=args.device)
        model.load_state_dict({k: v.float() for k, v in checkpoint["ema"].items()})
        quantised = bool(model.synthesis.out_up.scale > 0)
        quant.set_quantising(model, quantised)
    ema = copy.deepcopy(model)
    optims = optimisers(model, args)
    forward = torch.compile(model) if args.compile else model
    mixed = args.precision == "bf16" or (args.precision is None and args.device != "cpu")
    log = open(out / "log.jsonl", "a")
    start, step, last_save, watching = time.time(), 0, time.time(), 0
    mean = None
    print(f"{len(pictures)} pictures, {sum(p.numel() for p in model.parameters())} parameters", flush=True)
    while True:
        share = (time.time() - start) / (60 * args.minutes)
        if args.steps:
            share = step / args.steps
        if share >= 1:
            break
        if not quantised and share >= args.quantise_at:
            watching += 1
            if watching == 1:
                quant.set_watching(model, True)
            elif watching == 24:
                quant.set_watching(model, False)
                quant.freeze(model)
                quant.set_quantising(model, True)
                quant.set_quantising(ema, True)
                quantised = True
                save(out / "float.pt", model, ema, step, args)
                for a, b in zip(ema.buffers(), model.buffers()):
                    a.copy_(b)
        for o in optims:
            for g in o.param_groups:
                g["lr"] = g["base"] * learning_rate(share, args)
        x = crops.batch(args.batch).to(args.device)
        level = torch.rand(args.batch, device=args.device)
        with torch.autocast(args.device, dtype=torch.bfloat16, enabled=mixed):
            # Calibration reads values that a compiled graph would not keep.
            step_forward = model if watching in range(1, 24) else forward
            loss, bpp, mse, similarity, z_bpp = loss_of(model, step_forward, x, level, args.ssim)
        for o in optims:
            o.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not torch.isfinite(norm):
            print(f"step {step}: gradient is not finite, skipped", flush=True)
            continue
        for o in optims:
            o.step()
        with torch.no_grad():
            decay = min(args.ema, (1 + step) / (10 + step))
            for a, b in zip(ema.parameters(), model.parameters()):
                a.lerp_(b, 1 - decay)
        step += 1
        values = torch.stack([loss, bpp, mse, similarity, z_bpp]).detach()
        mean = values if mean is None else mean.lerp(values, 0.02)
        if step % 50 == 0:
            m = mean.tolist()
            row = {"step": step, "minutes": round((time.time() - start) / 60, 2), "loss": round(m[0], 4), "bpp": round(m[1], 4),
                   "psnr": round(-10 * math.log10(m[2] / 255**2), 3), "ms_ssim": round(m[3], 5), "z_bpp": round(m[4], 4),
                   "quantised": quantised, "gigapixels": round(step * args.batch * args.crop**2 / 1e9, 3)}
            print(json.dumps(row), file=log, flush=True)
            if step % 200 == 0 or args.steps:
                print(row, flush=True)
        if time.time() - last_save > 300:
            save(out / "last.pt", model, ema, step, args)
            last_save = time.time()
    save(out / "final.pt", model, ema, step, args)


if __name__ == "__main__":
    main()
