"""What a bundle's denoiser gains on pictures, at equal bytes: the files are the same, only the decoder differs.

    python denoiser_evaluate.py --sdl ../../target/release/sdl --bundle taef2-denoise --images ../../../shared/images/kodak \
        --distance ../../../shared/models/perceptual/squeezenet11_distance.onnx --quality 12 --work /tmp/evaluation

Bytes are those of real files of `sdl encode --denoise off`. The decoder is here, in PyTorch and ONNX Runtime, so that it can be stopped between the steps; on the first picture
it is compared with `sdl decode`. Results stay in the work folder: a second run measures only what is missing, and prints the table.
"""

import argparse
import json
import math
import os
import pathlib
import subprocess
import tomllib

import numpy as np
import onnxruntime
import torch
from PIL import Image

import metrics
from denoiser import alphas_cumprod


def session(path, threads):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(graph, *values):
    return graph.run(None, {port.name: value for port, value in zip(graph.get_inputs(), values)})[0]


def ddim(graph, quantised, step, steps):
    """DDIM with eta 0 from the timestep that matches the quantiser's step; the network predicts v. As format/src/codec/denoise.rs."""
    abar = alphas_cumprod().double().numpy()
    first = int(np.argmin(np.abs(np.log(np.sqrt(12 * (1 - abar) / abar) / step))))
    sample = quantised * math.sqrt(abar[first])
    timesteps = [first * (steps - k) // steps for k in range(steps)]
    for t, following in zip(timesteps, [*(abar[t] for t in timesteps[1:]), 1.0]):
        v = run(graph, sample.astype(np.float32), np.array([t]))
        signal, noise = math.sqrt(abar[t]), math.sqrt(1 - abar[t])
        clean, epsilon = signal * sample - noise * v, signal * v + noise * sample
        sample = math.sqrt(following) * clean + math.sqrt(1 - following) * epsilon
    return sample.astype(np.float32)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sdl", required=True)
    p.add_argument("--bundle", type=pathlib.Path, required=True, help="folder")
    p.add_argument("--images", type=pathlib.Path, required=True)
    p.add_argument("--distance", required=True, help="squeezenet11_distance.onnx")
    p.add_argument("--quality", type=int, required=True)
    p.add_argument("--only", nargs="*", help="names of pictures, without .png")
    p.add_argument("--steps", type=int, nargs="+", default=[0, 1, 4], help="denoising steps; 0: none")
    p.add_argument("--options", nargs="*", default=[], help="further options of `sdl encode`, e.g. -- --denoise off")
    p.add_argument("--work", type=pathlib.Path, required=True)
    args = p.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    manifest = tomllib.loads((args.bundle / "bundle.toml").read_text())
    latent, (low, high) = manifest["latent"], manifest["pixels"]["range"]
    step = latent["step"] * 2 ** ((50 - args.quality) / 12.5)
    analysis, synthesis = (session(args.bundle / f"{role}.onnx", 1) for role in ("analysis", "synthesis"))
    distance = session(args.distance, 1)
    denoiser = session(args.bundle / "denoiser.onnx", 1) if any(args.steps) else None
    results = args.work / f"results-{args.quality}.json"
    rows = json.loads(results.read_text()) if results.exists() else {}
    files = sorted(file for file in args.images.glob("*.png") if not args.only or file.stem in args.only)
    for number, file in enumerate(files):
        row = rows.setdefault(file.stem, {})
        missing = [steps for steps in args.steps if str(steps) not in row]
        if not missing:
            continue
        picture = np.array(Image.open(file).convert("RGB"))
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
        out, cache = args.work / f"{file.stem}-{args.quality}.sdl", args.work / f"{file.stem}.npy"
        if "bytes" not in row:
            environment = os.environ | {"SDL_MODEL_DIR": str(args.work)}
            subprocess.run([args.sdl, "encode", "--quiet", file, out, "--model", args.bundle, "-q", str(args.quality), *args.options], env=environment, check=True)
            row["bytes"], row["bpp"] = out.stat().st_size, 8 * out.stat().st_size / (picture.shape[0] * picture.shape[1])
        if not cache.exists():
            np.save(cache, run(analysis, (pixels * (high - low) + low).numpy()))
        z = (np.load(cache) - latent["shift"]) * latent["scale"]
        quantised = (np.round(z / step) * step).astype(np.float32)
        for steps in missing:
            better = ddim(denoiser, quantised, step, steps) if steps else quantised
            result = run(synthesis, better / np.float32(latent["scale"]) + np.float32(latent["shift"]))
            result = ((torch.from_numpy(result) - low) / (high - low)).clamp(0, 1)
            result = (result * 255).round() / 255
            if number == 0 and steps == 0:
                subprocess.run([args.sdl, "decode", "--quiet", out, args.work / "back.png"], check=True, env=os.environ | {"SDL_MODEL_DIR": str(args.work)})
                back = torch.from_numpy(np.array(Image.open(args.work / "back.png"))).permute(2, 0, 1)[None] / 255
                print(f"mean difference from the program's pixels: {255 * (back - result).abs().mean().item():.3f} levels", flush=True)
            row[str(steps)] = {
                "latent_mse": float(np.square(better - z).mean()), "psnr": -10 * math.log10((result - pixels).square().mean().item()),
                "ms_ssim": metrics.ms_ssim(result, pixels).item(), "distance": float(run(distance, result.numpy(), pixels.numpy())[0]),
            }  # fmt: skip
            results.write_text(json.dumps(rows, indent=1))
            print(file.stem, steps, row["bytes"], row[str(steps)], flush=True)
    complete = [row for row in rows.values() if all(str(steps) in row for steps in args.steps)]
    if complete:
        print(f"{len(complete)} pictures, step {step:.2f}, {np.mean([row['bpp'] for row in complete]):.4f} bpp\n\n| steps | latent MSE | PSNR | MS-SSIM | distance |\n|---|---|---|---|---|")
    for steps in args.steps if complete else []:
        mean = {key: np.mean([row[str(steps)][key] for row in complete]) for key in complete[0][str(steps)]}
        print(f"| {steps} | {mean['latent_mse']:.3f} | {mean['psnr']:.2f} | {mean['ms_ssim']:.4f} | {mean['distance']:.4f} |")


if __name__ == "__main__":
    main()
