"""Estimated rate and quality of a checkpoint on a folder of pictures: a look at training, not a result (`sdl bench` measures files).

    python evaluate.py --checkpoint /tmp/run/weights.pt --images ../../../shared/images/kodak

With `--encoder` the encoder is that of another checkpoint, in floating point: what is left between that and the same with `--float` is what the decoder's integers cost.
"""

import argparse
import math
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import metrics
import quant
from model import ENCODER, STRENGTH, load


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--checkpoint", required=True)
    p.add_argument("--images", required=True)
    p.add_argument("--encoder", help="checkpoint whose encoder is taken, without quantisation")
    p.add_argument("--every", type=int, default=1, help="take every n-th picture")
    p.add_argument("--float", action="store_true", help="without quantisation, whatever the checkpoint")
    p.add_argument("--levels", type=float, nargs="+", default=[0, 0.15, 0.3, 0.45, 0.6, 0.8, 1])
    args = p.parse_args()
    model = load(args.checkpoint)
    model.strength = STRENGTH
    if args.float:
        quant.set_quantising(model, False)
    if args.encoder:
        other = load(args.encoder, strict=False)
        quant.set_quantising(other, False)
        for part in ENCODER:
            setattr(model, part.rstrip("."), getattr(other, part.rstrip(".")))
    files = sorted(f for f in pathlib.Path(args.images).iterdir() if f.suffix in (".png", ".webp"))[:: args.every]
    print("level    bpp   z_bpp   PSNR  MS-SSIM")
    for level in args.levels:
        rows = []
        for f in files:
            x = torch.from_numpy(np.array(Image.open(f).convert("RGB"))).permute(2, 0, 1)[None].float() / 255
            h, w = x.shape[2:]
            padded = F.pad(x, (0, -w % 64, 0, -h % 64), mode="replicate")
            with torch.no_grad():
                y, bits, z_bits = model(padded, torch.tensor([level], dtype=torch.float32))
            y = torch.round(y[:, :, :h, :w].clamp(0, 1) * 255) / 255
            mse = (x - y).square().mean().item()
            rows.append((((bits + z_bits) / (h * w)).item(), (z_bits / (h * w)).item(), -10 * math.log10(mse), metrics.ms_ssim(x, y).item()))
        bpp, z, psnr, similarity = np.mean(rows, axis=0)
        print(f"{level:5.2f} {bpp:7.4f} {z:7.4f} {psnr:6.2f} {similarity:8.5f}", flush=True)


if __name__ == "__main__":
    main()
