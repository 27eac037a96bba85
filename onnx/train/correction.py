"""Trains the correction of a finished generation: it sees a picture and what is missing from it when its latent is decoded, and says what the
latent should have more of. Nothing that it does is written into the format.

    python correction.py --config correction.toml --checkpoint ../models/sdl-7.pt --images ../../../shared/images/train --out /tmp/run --minutes 40 --compile

Refinement (refine.py) goes some steps down the gradient of the distortion, and the way back through the decoder takes longer than all else in
encoding. This network learns by regression where the first steps lead. (Trained for rate and distortion themselves, straight through the
rounding, it makes files larger for little: that gradient does not know what a symbol costs that was 0.)
"""

import argparse
import copy
import math

import torch

from gptq import ROUNDING, compensate_part
from model import SCALE_MIN, Correction, missing_planes
from quant import freeze, set_quantising, set_watching
from refine import Refiner
from run import Run, learning_rate, set_rates, smooth
from train import optimisers

CALIBRATION = 24  # batches that the scales of the activations are taken from


def losses(correction, planes, wanted, error, coded, gain):
    """(squared error in symbols where they are coded, squares of what was wanted there)"""
    found = correction(planes).float() * gain
    # As in the encoder: whether the rounding's own errors are worth their bits it has judged.
    along = (found * error).sum((1, 2, 3)) / error.square().sum((1, 2, 3)).clamp_min(1e-9)
    found = found - along[:, None, None, None] * error
    return torch.stack([((found - wanted).square() * coded).mean(), (wanted.square() * coded).mean()])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--checkpoint", required=True, help="of a finished generation, quantised")
    p.add_argument("--weights", help="of an earlier run, to begin with")
    run = Run.of(p)
    args, config = run.args, run.config
    o, stages = config["optimiser"], config["stages"]
    crops = run.crops()
    model = run.quantised_model(args.checkpoint).to(args.device, memory_format=torch.channels_last)
    # In floating point it takes half the time, and says nearly the same.
    for part in (model.analysis, model.synthesis):
        set_quantising(part, False)
    correction = Correction(model.channels, **config["correction"]).to(args.device, memory_format=torch.channels_last)
    if args.weights:
        kept = torch.load(args.weights, map_location=args.device, weights_only=False)["ema"]
        correction.load_state_dict(correction.state_dict() | {name: w.float() for name, w in kept.items() if not name.endswith((".scale", ".seen"))})
    ema = copy.deepcopy(correction).requires_grad_(False)
    optims = optimisers(correction, o)
    state = run.resume({"correction": correction, "ema": ema, **optims}, {"mean": None})
    compiled = torch.compile if args.compile else lambda f: f
    judge, refiner = compiled(losses), Refiner(model, compiled(model.synthesis), config["loss"], compiled)

    def example(batch):
        """What the correction sees, and what there is to learn of it."""
        x, level = crops.batch(batch).to(args.device), torch.rand(batch, device=args.device)
        found = refiner(x, level, config["loss"]["refinement"])
        decoded = (255 * found.decoded).round().clamp(0, 255) / 255
        return missing_planes(x, decoded), found.moved, found.error, found.log_scale > math.log(SCALE_MIN), found.gain

    explained = lambda error, size: round(1 - error / size, 4)
    while not run.over():
        set_rates(optims.values(), learning_rate(run.share(), stages["full"], stages["decay"]))
        with run.autocast():
            found = judge(correction, *example(o["batch"]))
        for optimiser in optims.values():
            optimiser.zero_grad(set_to_none=True)
        found[0].backward()
        if run.advance(correction, ema, optims.values(), o["ema"]):
            state["mean"] = smooth(state["mean"], found)
        if run.step % 50 == 0 and state["mean"] is not None:
            run.log({"step": run.step, "minutes": round(run.seconds() / 60, 2), "explained": explained(*state["mean"].tolist()),
                     "gigapixels": round(run.step * o["batch"] * crops.size**2 / 1e9, 3)})  # fmt: skip
        run.keep(state, ema)
    run.keep(state, ema, last=True)
    if run.share() >= 1:
        run.save_weights("float.pt", ema)
        finish(run, ema, [example(16) for _ in range(CALIBRATION)], explained)


@torch.no_grad()
def finish(run, correction, examples, explained):
    """Finds scales for what is rounded, and rounds the weights."""
    set_watching(correction, True)
    for planes, *_ in examples:
        correction(planes)
    set_watching(correction, False)
    worth = lambda: explained(*torch.stack([losses(correction, *one) for one in examples]).mean(0).tolist())
    row = {"step": run.step, "unrounded": worth()}
    freeze(correction)
    set_quantising(correction, True, weights=False)
    row["rounded_activations"] = worth()
    some = [planes for planes, *_ in examples[:ROUNDING]]
    compensate_part(correction, some, [torch.ones(len(planes), device=planes.device) for planes in some])
    run.log(row | {"rounded": worth()})
    run.save_weights("weights.pt", correction)


if __name__ == "__main__":
    main()
