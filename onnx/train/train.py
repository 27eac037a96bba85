"""Trains the built-in model: one configuration, one command; the same command goes on where an interrupted run stopped.

    python train.py --config train.toml --images ../../../shared/images/train --out /tmp/run --minutes 70

The learning rate follows the share of the run that is done, so that the same configuration makes sense for 2 minutes and for
10 hours: warm-up, constant, cosine, and inside the cosine with quantised activations. Weights are rounded when all else is done. `--weights` begins with those of an earlier run.
With `--decoder` only the encoder of a finished generation is trained: whatever a decoder knows stays bit for bit, and so do files.
"""

import argparse
import copy
import math

import torch
import torch.nn as nn

import dormant
import gptq
import metrics
import quant
from model import ENCODER, Block, Model, spread_latent
from muon import Muon
from run import Run, learning_rate, set_rates, smooth

RECYCLE = 500  # steps between two looks for dormant units, as long as the model computes in floating point
CALIBRATION = 24  # batches that the scales of the activations are taken from
LEVELLING = 2  # rounds in which ranges of channels and scales of activations are found: each depends on the other


def optimisers(model, o):
    matrices, rest = [], []
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        is_matrix = p.dim() == 4 and p.shape[2] == 1 and p.shape[1] > 1 and "scale_map" not in name
        (matrices if is_matrix and o["kind"] == "muon" else rest).append(p)
    # Logarithms of gains and scales have far to go: small networks around them settle sooner.
    tables = [p for p in rest if p.dim() == 2 and p.shape[0] == getattr(model, "anchors", None)]
    others = [p for p in rest if all(p is not t for t in tables)]
    groups = [{"params": others}, {"params": tables, "lr": 4 * o["adam"]}]
    result = {"adam": torch.optim.Adam(groups, lr=o["adam"], betas=(0.9, 0.99))}
    if matrices:
        result["muon"] = Muon(matrices, lr=o["muon"])
    return result


def distortion_of(reconstruction, x, c):
    """(distortion, squared error in grey levels, MS-SSIM) of each picture."""
    reconstruction = reconstruction.float()
    mse = (reconstruction - x).square().mean((1, 2, 3)) * 255**2
    similarity = metrics.ms_ssim(metrics.luma(reconstruction), metrics.luma(x), coarse=True)
    return (1 - c["ms_ssim"]) * mse + c["ms_ssim"] * c["ms_ssim_scale"] * (1 - similarity), mse, similarity


def loss_of(model, forward, x, level, c, measure=distortion_of):
    reconstruction, y_bits, z_bits = forward(x, level)
    pixels = x.shape[2] * x.shape[3]
    distortion, mse, similarity = measure(reconstruction, x, c)
    weight = model.lambda_of(level)
    bpp = (y_bits + z_bits) / pixels
    loss = ((bpp + weight * distortion) * weight ** c["lambda_power"]).mean()
    return loss, bpp.mean(), mse.mean(), similarity.mean(), (z_bits / pixels).mean()


def copy_scales(source, to):
    for a, b in zip(to.buffers(), source.buffers()):
        a.copy_(b)


@torch.no_grad()
def refine_scales(model, part, x, level, c):
    """Halves, quarters or doubles the scale of each activation of a part in turn where that makes the loss on some pictures less. Tails are
    heavy: what a percentile of the values keeps from clipping may cost all others two bits."""
    training = model.training
    model.eval()
    value = lambda: loss_of(model, model, x, level, c)[0].item()
    first = best = value()
    for activation in (m for m in part.modules() if isinstance(m, quant.Activation)):
        kept = scale = activation.scale.clone()

        def is_better(factor):
            nonlocal best, kept
            activation.scale.copy_(scale * factor)
            found = value()
            if found >= best - 1e-4 * first:
                return False
            best, kept = found, scale * factor
            return True

        # Larger than what percentiles say is hardly ever better, and not where smaller is.
        is_better(0.25 if is_better(0.5) else 2.0)
        activation.scale.copy_(kept)
    print(f"scales: loss {first:.3f}, then {best:.3f}", flush=True)
    model.train(training)


def begin_with(model, weights, decoder):
    """Takes over weights of an earlier run, and scales where they belong to the `decoder` to be kept, if there is one. Others are found
    anew: the schedule begins in floating point. Blocks of the analysis that are new add nothing yet."""
    is_scale = lambda name: name.endswith((".scale", ".seen"))
    known = {name: w.float() for name, w in weights.items() if not is_scale(name)}
    if decoder:
        known |= {name: w.float() for name, w in decoder.items() if not name.startswith(ENCODER)}
    missing, unexpected = model.load_state_dict(known, strict=False)
    new = [name for name, m in model.analysis.named_modules() if isinstance(m, Block) and f"analysis.{name}.a.weight" in missing]
    for block in map(model.analysis.get_submodule, new):
        for layer in (block.b, block.d):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    of_new = tuple(f"analysis.{name}." for name in new)
    foreign = unexpected + [name for name in missing if not is_scale(name) and not name.startswith(of_new)]
    if foreign:
        raise SystemExit(f"these weights are of another model: {', '.join(foreign[:5])}")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--weights", help="checkpoint of an earlier run to begin with; the schedule starts anew")
    p.add_argument("--decoder", help="checkpoint of a finished generation, quantised: its decoder is kept, and the encoder trained alone; needs --weights")
    run = Run.of(p)
    args, config = run.args, run.config
    o, stages = config["optimiser"], config["stages"]
    crops = run.crops()
    model = Model(**config["model"]).to(args.device).to(memory_format=torch.channels_last)
    # Batches seen for the scales: CALIBRATION and no more of them when the decoder is quantised.
    state = {"mean": None, "watched": 0}
    # Pictures that say which units are open, at all rates.
    look = crops.batch(2 * o["batch"]).to(args.device), torch.linspace(0, 1, 2 * o["batch"], device=args.device)
    kept = lambda path: torch.load(path, map_location=args.device, weights_only=False)["ema"]
    if args.weights:
        begin_with(model, kept(args.weights), args.decoder and kept(args.decoder))
    # What is quantised on the way.
    trained, parts = model, ("synthesis", "analysis")
    if args.decoder:
        trained, parts = model.analysis, ("analysis",)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(ENCODER))
        for part in (model.synthesis, model.hyper_synthesis):
            quant.set_quantising(part, True)
    elif args.weights:
        print(f"{dormant.recycle(model, *look)} dormant units begin anew", flush=True)
    model.strength = config["loss"]["strength"]
    ema = copy.deepcopy(model)
    optims = optimisers(model, o)
    of_mean = ema.analysis if args.decoder else ema
    state = run.resume({"model": model, "ema": ema, **optims}, state)
    quant.set_watching(trained, 0 < state["watched"] < CALIBRATION)
    for m in (trained, of_mean):
        quant.set_quantising(m, state["watched"] == CALIBRATION, weights=False)
    forward, measure = map(torch.compile, (model, distortion_of)) if args.compile else (model, distortion_of)
    print(f"{len(crops.pictures)} pictures, {sum(p.numel() for p in model.parameters())} parameters", flush=True)
    while not run.over():
        share = run.share()
        if share >= stages["quantise"] and state["watched"] < CALIBRATION:
            state["watched"] += 1
            quant.set_watching(trained, state["watched"] < CALIBRATION)
            if state["watched"] == CALIBRATION:
                run.save_weights("float.pt", ema)
                quant.freeze(trained)
                copy_scales(model, ema)
                for m in (trained, of_mean):
                    quant.set_quantising(m, True, weights=False)
                if not args.decoder:
                    spread_latent([ema, model], *look)
                for _ in range(LEVELLING):
                    print(f"{quant.level_channels([ema, model], *look, parts)} channels have another range", flush=True)
                    with run.autocast():
                        refine_scales(ema, of_mean, *look, config["loss"])
                copy_scales(ema, model)
        set_rates(optims.values(), learning_rate(share, stages["full"], stages["decay"]))
        if run.step and run.step % RECYCLE == 0 and share < stages["quantise"] and not args.decoder:
            dormant.recycle(model, *look)
        x = crops.batch(o["batch"]).to(args.device)
        level = torch.rand(o["batch"], device=args.device)
        with run.autocast():
            # Calibration reads values that a compiled graph would not keep.
            step_forward = model if 0 < state["watched"] < CALIBRATION else forward
            loss, bpp, mse, similarity, z_bpp = loss_of(model, step_forward, x, level, config["loss"], measure)
        for optimiser in optims.values():
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if run.advance(model, ema, optims.values(), o["ema"]):
            state["mean"] = smooth(state["mean"], torch.stack([loss, bpp, mse, similarity, z_bpp]))
        if run.step % 50 == 0 and state["mean"] is not None:
            m = state["mean"].tolist()
            run.log({"step": run.step, "minutes": round(run.seconds() / 60, 2), "loss": round(m[0], 4), "bpp": round(m[1], 4),
                     "psnr": round(-10 * math.log10(m[2] / 255**2), 3), "ms_ssim": round(m[3], 5), "z_bpp": round(m[4], 4),
                     "open": round(dormant.share_open(model, *look), 3),
                     "quantised": state["watched"] == CALIBRATION, "gigapixels": round(run.step * x[:, 0].numel() / 1e9, 3)})  # fmt: skip
        run.keep(state, ema)
    run.keep(state, ema, last=True)
    if run.share() >= 1 and state["watched"] == CALIBRATION:
        pictures = [crops.batch(16).to(args.device) for _ in range(gptq.ROUNDING)]
        if args.decoder:
            gptq.compensate_analysis(ema, pictures)
        else:
            gptq.compensate(ema, pictures, 1 + config["loss"]["lambda_power"])
        run.save_weights("weights.pt", ema)


if __name__ == "__main__":
    main()
