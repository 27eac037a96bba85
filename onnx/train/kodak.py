"""BD-rate of real `.sdl` files against JPEG and WebP (Pillow's libjpeg-turbo and libwebp) on a folder of pictures.

    python kodak.py --sdl ../../target/release/sdl --images ../../../shared/images/kodak --out ../../docs/results/generation-0

Rates are whole files. JPEG: 4:2:0, progressive, optimised tables. WebP: method 6. Curves are means over the pictures at each setting; BD-rate by
piecewise cubic interpolation (PCHIP) of log rate over quality, on the part that both curves cover.
"""

import argparse
import io
import json
import math
import pathlib
import subprocess
import tempfile

import numpy as np
import torch
from PIL import Image

import metrics


def tensor(picture):
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None].float() / 255


def measure(original, decoded, size):
    a, b = tensor(original), tensor(decoded)
    mse = (a - b).square().mean().item()
    return {"bpp": 8 * size / (a.shape[2] * a.shape[3]), "psnr": -10 * math.log10(mse), "ms_ssim": metrics.ms_ssim(a, b).item()}


def pillow(picture, **options):
    buffer = io.BytesIO()
    picture.save(buffer, **options)
    return measure(picture, Image.open(buffer), len(buffer.getbuffer()))


def sdl(program, file, picture, options, folder):
    out, back = folder / "x.sdl", folder / "x.ppm"
    subprocess.run([program, "encode", "--quiet", file, out, *options], check=True)
    subprocess.run([program, "decode", "--quiet", out, back], check=True)
    return measure(picture, Image.open(back), out.stat().st_size)


def pchip_slopes(x, y):
    h, d = np.diff(x), np.diff(y) / np.diff(x)
    m = np.zeros(len(x))
    m[0], m[-1] = d[0], d[-1]
    for i in range(1, len(x) - 1):
        if d[i - 1] * d[i] > 0:
            w1, w2 = 2 * h[i] + h[i - 1], h[i] + 2 * h[i - 1]
            m[i] = (w1 + w2) / (w1 / d[i - 1] + w2 / d[i])
    return m


def pchip(x, y, at):
    m = pchip_slopes(x, y)
    i = np.clip(np.searchsorted(x, at) - 1, 0, len(x) - 2)
    h = x[i + 1] - x[i]
    t = (at - x[i]) / h
    return ((1 + 2 * t) * (1 - t) ** 2) * y[i] + t * (1 - t) ** 2 * h * m[i] + t**2 * (3 - 2 * t) * y[i + 1] + t**2 * (t - 1) * h * m[i + 1]


def bd_rate(anchor, test, key, low=0.05, high=0.5):
    """Per cent of bits that `test` needs more than `anchor` at equal quality; only points from `low` to `high` bpp of the test curve count."""
    transform = (lambda v: -10 * math.log10(1 - v)) if key == "ms_ssim" else (lambda v: v)
    curves = []
    for rows in (anchor, test):
        points = sorted((transform(r[key]), math.log(r["bpp"])) for r in rows)
        kept = [points[0]]
        for q, r in points[1:]:
            if q > kept[-1][0] + 1e-6:
                kept.append((q, r))
        curves.append((np.array([q for q, _ in kept]), np.array([r for _, r in kept])))
    inside = [transform(r[key]) for r in test if low <= r["bpp"] <= high]
    a = max(curves[0][0][0], curves[1][0][0], min(inside))
    b = min(curves[0][0][-1], curves[1][0][-1], max(inside))
    if b <= a:
        return None, (a, b)
    at = np.linspace(a, b, 400)
    difference = pchip(*curves[1], at) - pchip(*curves[0], at)
    return 100 * (math.exp(difference.mean()) - 1), (a, b)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sdl", help="the program; without it only the other codecs are measured")
    p.add_argument("--images", required=True)
    p.add_argument("--out", required=True, help="prefix of the .json file")
    p.add_argument("--qualities", type=int, nargs="+", default=[0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100])
    p.add_argument("--options", nargs="*", default=[], help="further options of `sdl encode`")
    p.add_argument("--every", type=int, default=1)
    args = p.parse_args()
    torch.set_num_threads(1)
    files = sorted(pathlib.Path(args.images).glob("*.png"))[:: args.every]
    path = pathlib.Path(args.out + ".json")
    results = json.loads(path.read_text()) if path.exists() else {}
    originals = {f: Image.open(f).convert("RGB") for f in files}
    mean = lambda rows: {k: float(np.mean([r[k] for r in rows])) for k in rows[0]}
    if "jpeg" not in results:
        results["jpeg"] = [dict(setting=q, **mean([pillow(o, format="JPEG", quality=q, subsampling=2, progressive=True, optimize=True) for o in originals.values()]))
                           for q in (3, 5, 7, 10, 15, 20, 25, 30, 40, 50, 60, 75, 85)]
        results["webp"] = [dict(setting=q, **mean([pillow(o, format="WEBP", quality=q, method=6) for o in originals.values()]))
                           for q in (0, 2, 5, 10, 20, 30, 40, 50, 60, 75, 85)]
    if args.sdl:
        results["sdl"] = []
        with tempfile.TemporaryDirectory() as folder:
            for q in args.qualities:
                rows = [sdl(args.sdl, f, o, ["-q", str(q), *args.options], pathlib.Path(folder)) for f, o in originals.items()]
                results["sdl"].append(dict(setting=q, **mean(rows)))
                print(results["sdl"][-1], flush=True)
        for anchor in ("jpeg", "webp"):
            for key in ("psnr", "ms_ssim"):
                rate, span = bd_rate(results[anchor], results["sdl"], key)
                results.setdefault("bd_rate", {})[f"{anchor} {key}"] = rate
                print(f"BD-rate against {anchor} by {key}: {rate if rate is None else round(rate, 1)} % over {span[0]:.2f} to {span[1]:.2f} dB", flush=True)
    path.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
