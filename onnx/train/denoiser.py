"""Trains a small latent denoiser for a bundle: first `encode`, then `train`, then `export`.

    python denoiser.py encode --bundle taef2 --images ../../../shared/images/train --out /tmp/denoiser --minutes 12
    python denoiser.py train --out /tmp/denoiser --minutes 35
    python denoiser.py export --out /tmp/denoiser --to ../models/taef2-denoiser

The network predicts v (Salimans and Ho 2022) of the scaled latent z at timestep t of Stable Diffusion's schedule. A decoder feeds it sqrt(abar) z',
where z' is z quantised with a step D that matches t: D^2 / 12 = (1 - abar) / abar. So half of every batch is just that, and half is what DDIM's later
steps see: z with Gaussian noise.
"""

import argparse
import json
import math
import pathlib
import sys
import time
import tomllib

import numpy as np
import onnxruntime
import torch
from torch import nn
from torch.nn import functional as F

import data

BETAS = {"kind": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "train_steps": 1000}
CROP = 320
# Crops that are looked at and not trained on.
HELD = 32
# Steps of the quantiser that a picture is worth decoding at, in standard deviations of the latent.
FINEST, COARSEST = 0.3, 6.0


def alphas_cumprod():
    roots = torch.linspace(BETAS["beta_start"] ** 0.5, BETAS["beta_end"] ** 0.5, BETAS["train_steps"], dtype=torch.float64)
    return torch.cumprod(1 - roots**2, 0).float()


class Block(nn.Module):
    """Depthwise 5x5, then two 1x1 with a ReLU between, beside the identity; the timestep scales and shifts what goes in."""

    def __init__(self, width, conditions):
        super().__init__()
        self.condition = nn.Linear(conditions, 2 * width)
        self.spread = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.up, self.down = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(2 * width, width, 1)
        nn.init.zeros_(self.condition.weight)
        nn.init.zeros_(self.condition.bias)
        with torch.no_grad():
            self.down.weight.mul_(0.3)

    def forward(self, x, condition):
        scale, shift = self.condition(condition)[:, :, None, None].chunk(2, 1)
        return x + self.down(F.relu(self.up(self.spread(x) * (1 + scale) + shift)))


class Denoiser(nn.Module):
    """(N, C, h, w) noisy latent and (N) timesteps to (N, C, h, w) of v. Two resolutions; odd sizes are padded by their border."""

    def __init__(self, channels, width=64, wide=96, blocks=3, conditions=64):
        super().__init__()
        self.register_buffer("abar", alphas_cumprod())
        self.embed = nn.Sequential(nn.Linear(16, conditions), nn.ReLU(), nn.Linear(conditions, conditions), nn.ReLU())
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.before = nn.ModuleList(Block(width, conditions) for _ in range(blocks))
        self.coarser = nn.Conv2d(width, wide, 2, stride=2)
        self.middle = nn.ModuleList(Block(wide, conditions) for _ in range(blocks))
        self.finer = nn.Conv2d(wide, 4 * width, 1)
        self.after = nn.ModuleList(Block(width, conditions) for _ in range(blocks))
        self.last = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, sample, timestep):
        height, width = sample.shape[2:]
        rows = torch.arange((height + 1) // 2 * 2, device=sample.device).clamp(max=height - 1)
        columns = torch.arange((width + 1) // 2 * 2, device=sample.device).clamp(max=width - 1)
        x = sample.index_select(2, rows).index_select(3, columns)
        abar = self.abar[timestep]
        # The logarithm of the noise-to-signal ratio says more about a step than its number.
        level = 0.5 * torch.log((1 - abar) / abar)
        waves = level[:, None] * torch.tensor([math.pi * 2.0 ** (k / 2 - 3) for k in range(8)], device=sample.device)
        condition = self.embed(torch.cat([waves.sin(), waves.cos()], 1))
        x = self.first(x)
        for block in self.before:
            x = block(x, condition)
        low = self.coarser(x)
        for block in self.middle:
            low = block(low, condition)
        x = x + F.pixel_shuffle(self.finer(low), 2)
        for block in self.after:
            x = block(x, condition)
        return self.last(x)[:, :, :height, :width]


def encode(args):
    """Latents of random crops, as the bundle's analysis gives them, one file every hundred."""
    folder = pathlib.Path(args.bundle)
    manifest = tomllib.loads((folder / "bundle.toml").read_text())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    session = onnxruntime.InferenceSession(folder / manifest["graphs"]["analysis"]["file"], options, providers=["CPUExecutionProvider"])
    low, high = manifest.get("pixels", {}).get("range", [0, 1])
    channels = manifest["latent"]["channels"]
    args.out.mkdir(parents=True, exist_ok=True)
    pictures = data.load_shards(args.images, limit=args.limit, shrink=(1.0, 0.7, 0.5), least=CROP)
    crops = data.Crops(pictures, CROP, args.seed)
    end, latents, files = time.time() + 60 * args.minutes, [], 0
    while time.time() < end:
        crop = crops.batch(1).contiguous().numpy() * (high - low) + low
        latents.append(session.run(None, {session.get_inputs()[0].name: crop.astype(np.float32)})[0][0, :channels].astype(np.float16))
        if len(latents) == 100:
            np.save(args.out / f"latents-{files:03}.npy", np.stack(latents))
            latents, files = [], files + 1
    print(f"{100 * files} crops of {CROP}x{CROP}")


def quantise(z, step, threshold):
    """As encoders do: a symbol lies on each channel's median, and values go to the nearest symbol (`threshold` 0.5) or towards it, to save bits."""
    median = z.flatten(2).median(2).values[:, :, None, None] / step
    offset = median - median.round()
    steps = z / step - offset
    return (steps.sign() * torch.floor(steps.abs() + 1 - threshold) + offset) * step


def corrupt(z, abar, random):
    """Half of the batch quantised, half with noise: what the network is given, and v. Timesteps too."""
    count = len(z)
    ratio = ((1 - abar) / abar).sqrt()
    step = torch.exp(torch.rand(count, generator=random) * math.log(COARSEST / FINEST)) * FINEST
    timestep = torch.searchsorted(ratio, step / 12**0.5).clamp(max=len(abar) - 1)
    signal, noise = (abar[timestep].sqrt().view(-1, 1, 1, 1), (1 - abar[timestep]).sqrt().view(-1, 1, 1, 1))
    # The step that the timestep stands for, exactly: a decoder has no other information on it.
    step = (ratio[timestep] * 12**0.5).view(-1, 1, 1, 1)
    quantised = quantise(z, step, 0.5 + 0.15 * torch.rand(count, 1, 1, 1, generator=random))
    noisy = z + ratio[timestep].view(-1, 1, 1, 1) * torch.randn(z.shape, generator=random)
    x = signal * torch.where(torch.arange(count).view(-1, 1, 1, 1) < count // 2, quantised, noisy)
    return x, timestep, (signal * x - z) / noise


def train(args):
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    random = torch.Generator().manual_seed(args.seed)
    latents = torch.from_numpy(np.concatenate([np.load(file) for file in sorted(args.out.glob("latents-*.npy"))]))
    held, latents = latents[:HELD].float(), latents[HELD:]
    # One number for all channels, so that one step of the quantiser is one error, whatever the channel.
    scale = 1 / latents[::7].float().std().item()
    channels, side = latents.shape[1], latents.shape[2]
    model = Denoiser(channels).to(memory_format=torch.channels_last)
    if args.resume:
        model.load_state_dict(torch.load(args.resume, weights_only=True)["state"])
    size = sum(p.numel() for p in model.parameters())
    print(f"{len(latents)} crops of {side}x{side}, scale {scale:.4f}, {size} parameters", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate, weight_decay=0.01, betas=(0.9, 0.98))
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998))
    begin, step, sums = time.time(), 0, []
    log = open(args.out / "log.jsonl", "w")

    def save():
        state = {"state": average.module.state_dict(), "scale": scale, "channels": channels, "steps": step, "crops": len(latents)}
        torch.save(state, args.out / "last.pt.partial")
        (args.out / "last.pt.partial").rename(args.out / "last.pt")

    while (past := (time.time() - begin) / (60 * args.minutes)) < 1:
        # Warm-up, then flat, then a cosine to nearly nothing over the second half.
        rate = min(step / 100, 1) * (1 if past < 0.4 else 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (past - 0.4) / 0.6)))
        for group in optimizer.param_groups:
            group["lr"] = args.rate * rate
        y, x = torch.randint(0, side - 31, (2,), generator=random).tolist()
        z = latents[torch.randint(0, len(latents), (args.batch,), generator=random), :, y : y + 32, x : x + 32].float() * scale
        z = z.contiguous(memory_format=torch.channels_last)
        given, timestep, v = corrupt(z, model.abar, random)
        loss = F.mse_loss(model(given, timestep), v)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
        sums.append(loss.item())
        step += 1
        if step % 100 == 0:
            line = {"step": step, "minutes": round((time.time() - begin) / 60, 2), "loss": round(float(np.mean(sums)), 4)}
            if step % 1000 == 0:
                line |= gains(average.module, held * scale)
            print(json.dumps(line), file=log, flush=True)
            print(line, flush=True)
            sums = []
            save()
    save()
    print(f"{step} steps", gains(average.module, held * scale))


@torch.no_grad()
def gains(model, z):
    """How much of the error of the quantised latent one step takes away, in dB, on crops that are not trained on."""
    result = {}
    for step in (0.5, 1, 2, 3, 4):
        timestep = torch.searchsorted(((1 - model.abar) / model.abar).sqrt(), torch.tensor(step / 12**0.5))
        quantised = quantise(z, step, 0.6)
        abar = model.abar[timestep]
        x = abar.sqrt() * quantised
        better = abar.sqrt() * x - (1 - abar).sqrt() * model(x, timestep.repeat(len(z)))
        result[f"gain_{step}"] = round(10 * math.log10(F.mse_loss(quantised, z).item() / F.mse_loss(better, z).item()), 3)
    return result


def load(path):
    """The trained network and the scale of its latent."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    model = Denoiser(checkpoint["channels"])
    model.load_state_dict(checkpoint["state"])
    return model.eval(), checkpoint


def export(args):
    """denoiser.onnx and denoiser.toml: what `onnx/export/tiny_autoencoder.py --denoiser` adds to a bundle."""
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "export"))
    import bundle

    model, checkpoint = load(args.out / "last.pt")
    channels = checkpoint["channels"]
    with bundle.Bundle(args.to) as writer:
        inputs = {"sample": lambda h, w: torch.randn(1, channels, h, w), "timestep": lambda h, w: torch.randint(0, BETAS["train_steps"], (1,))}
        writer.graph("denoiser", model, inputs, ["v"], half=True)
        writer.finish({"latent": {"scale": checkpoint["scale"], "shift": 0.0}, "denoiser": {"prediction": "v", "schedule": BETAS}}, "denoiser.toml")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in (("encode", encode), ("train", train), ("export", export)):
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        command.add_argument("--out", type=pathlib.Path, required=True, help="folder of latents and checkpoints")
        if name == "export":
            command.add_argument("--to", type=pathlib.Path, required=True)
            continue
        command.add_argument("--minutes", type=float, required=True)
        command.add_argument("--threads", type=int, default=1)
        command.add_argument("--seed", type=int, default=0)
        if name == "encode":
            command.add_argument("--bundle", required=True, help="folder of a bundle")
            command.add_argument("--images", required=True, help="folder of shard-*.tar")
            command.add_argument("--limit", type=int, help="pictures at most")
        else:
            command.add_argument("--resume", type=pathlib.Path, help="checkpoint to start from")
            command.add_argument("--batch", type=int, default=4)
            command.add_argument("--rate", type=float, default=2e-3)
    args = parser.parse_args()
    args.function(args)


if __name__ == "__main__":
    main()
