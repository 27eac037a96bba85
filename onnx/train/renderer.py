"""Gives the renderer of a finished generation finer steps, without training: what it hands on are bytes, and their steps are most of what exactness costs.

    python renderer.py --checkpoint ../models/sdl-7.pt --unrounded ../models/sdl-7-exact.pt --images ../../../shared/images/train --out /tmp/finer.pt
    python gptq.py --synthesis --checkpoint /tmp/finer.pt --images ../../../shared/images/train --out /tmp/rounded.pt

A channel and a copy of it, one rounded a quarter of a step above and the other a quarter below, add up to one with steps of half the size
(Hermite's identity: round(t - 1/4) + round(t + 1/4) is round(2 t)), and so do weights of which the second gives back what the first has lost by
rounding (`gptq.fit`). The channels whose steps cost most get copies; then one digit of weights is enough where two were needed. And channels are
centred in their range where no border sees it. Encoder, tables and every symbol stay. synthesis.py may train what comes of it instead of gptq.py.
"""

import argparse
import copy
import pathlib

import torch

import data
import quant
from model import STRENGTH, Synthesis, load
from run import half, write
from train import refine_scales

ENDS = 2e-4  # shares of the values at either end that do not count for the middle of a range
PROBES = 64  # pictures
LEVELLING = 2  # rounds of ranges and scales
BATCH = 16  # crops at a time
SEEN = 8 * BATCH  # crops; ranges see all, for tails are rare
SCALING = 3 * BATCH  # of those, for scales


class Known(torch.nn.Module):
    """A model of which latents of some pictures are known, so that nothing needs to be encoded again."""

    def __init__(self, model, latent):
        super().__init__()
        self.synthesis, self.latent, self.lambda_of = model.synthesis, latent, model.lambda_of

    def forward(self, x, level):
        no_bits = torch.zeros(len(x))
        return self.synthesis(self.latent), no_bits, no_bits


def unrounded_of(model, earlier):
    """The synthesis of `earlier`, whose weights are not rounded yet, for the latents of `model`, whose steps have been enlarged since."""
    synthesis = copy.deepcopy(earlier.synthesis)
    synthesis.stem.weight.div_(torch.exp((model.log_ungain - earlier.log_ungain).mean(0))[None, :, None, None])
    return synthesis


@torch.no_grad()
def centre(synthesis, latent):
    """Moves the channels of the stream and those behind the depthwise layer so that the ranges of what is rounded lie about 0. What reads them
    takes it back, the same everywhere, so that only 1x1 convolutions may: a border is 0."""

    def middle(activation):
        values = quant.entering(activation, synthesis, latent).transpose(0, 1).flatten(1)
        values = values[:, :: max(1, values.shape[1] // 100_000)]
        return torch.quantile(values, torch.tensor([ENDS, 1 - ENDS]), dim=1).mean(0)

    def move(writer, readers, by):
        writer.bias.sub_(by)
        for reader in readers:
            reader.bias.add_(reader.weight.flatten(1) @ by)

    s = synthesis
    move(s.stem, [s.up, *(reader for block in s.blocks for reader in (block.a, block.c))], middle(s.in_up))
    move(s.dw, [s.c], middle(s.act_dw))


def costs(synthesis, latent):
    """What a step of each channel of `out_up`, `act_dw` and `act_c` costs in squares of grey levels, in proportion: the squared gradient of pixels
    by it, found by probes (Hutchinson), times that of its step."""
    activations = {name: getattr(synthesis, name) for name in ("out_up", "act_dw", "act_c")}
    channels = dict(out_up=synthesis.dw.in_channels, act_dw=synthesis.dw.in_channels, act_c=synthesis.c.out_channels)
    seen, total = {}, dict.fromkeys(activations, 0.0)
    hooks = [a.register_forward_hook(lambda _, inputs, output, name=name: seen.update({name: output})) for name, a in activations.items()]
    for one in latent.split(1):
        pixels = synthesis.levels(one.clone().requires_grad_(True))
        signs = torch.randint(0, 2, pixels.shape) * 2.0 - 1
        for name, gradient in zip(activations, torch.autograd.grad(pixels, [seen[name] for name in activations], signs)):
            total[name] = total[name] + gradient.reshape(1, channels[name], -1).square().mean((0, 2))
    for hook in hooks:
        hook.remove()
    return {name: total[name] * activations[name].scale.square() for name in activations}


@torch.no_grad()
def with_copies(synthesis, late, hidden, digits=1):
    """A synthesis whose channels `late` (in front of and behind the depthwise layer) and `hidden` (units of the last hidden layer) have copies, each
    pair with its steps half a step apart."""
    old = synthesis
    new = Synthesis(old.stem.in_channels, old.stem.out_channels, len(old.blocks), old.blocks[0].dw.in_channels, old.blocks[0].c.out_channels,
                    old.dw.in_channels, old.c.out_channels, digits, late, hidden)  # fmt: skip
    for name in ("stem", "blocks", "in_up", "out_up", "act_dw", "act_c"):
        setattr(new, name, getattr(old, name))

    def spread(channels, copied):
        """-> (channel that each comes of, where it is rounded in steps from where it was, share of what it weighs)"""
        of = torch.tensor([*range(channels), *copied])
        apart, share = torch.zeros(len(of)), torch.ones(len(of))
        apart[copied], apart[channels:] = -0.25, 0.25
        share[copied], share[channels:] = 0.5, 0.5
        return of, apart, share[None, :, None, None]

    of, apart, share = spread(old.dw.in_channels, late)
    of_hidden, apart_hidden, share_hidden = spread(old.c.out_channels, hidden)
    positions = old.up.out_channels // old.dw.in_channels
    new.up.weight.copy_(old.up.weight.unflatten(0, (-1, positions))[of].flatten(0, 1))
    new.up.bias.copy_((old.up.bias.view(-1, positions)[of] + (apart * old.out_up.scale)[:, None]).flatten())
    new.dw.weight.copy_(old.dw.weight[of])
    new.dw.bias.copy_(old.dw.bias[of] - apart * old.out_up.scale * new.dw.weight.sum((1, 2, 3)) + apart * old.act_dw.scale)
    new.c.weight.copy_(old.c.weight[of_hidden][:, of] * share)
    new.c.bias.copy_(old.c.bias[of_hidden] + apart_hidden * old.act_c.scale)
    new.head.weight.copy_(old.head.weight[:, of_hidden] * share_hidden)
    new.head.bias.copy_(old.head.bias)
    return new


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--checkpoint", required=True, help="of a finished generation, whose renderer has no copies yet")
    p.add_argument("--unrounded", help="checkpoint of the same with weights that are not rounded; without it weights are rounded twice")
    p.add_argument("--images", required=True, help="folder of shard-*.tar")
    p.add_argument("--out", required=True, help="checkpoint with another synthesis, whose weights are to be rounded")
    p.add_argument("--late", type=int, default=16, help="copies of channels at stride 4")
    p.add_argument("--hidden", type=int, default=32, help="copies of hidden units there")
    p.add_argument("--limit", type=int, help="pictures that are read")
    args = p.parse_args()
    checkpoint = torch.load(args.checkpoint, map_location="cpu", weights_only=False)
    config = checkpoint["config"]
    torch.manual_seed(config["seed"])
    model = load(args.checkpoint)
    if not model.synthesis.stem.quantising or model.synthesis.dw.copies:
        raise SystemExit(f"{args.checkpoint} is not quantised yet, or its renderer has copies")
    model.strength = STRENGTH
    crops = data.configured(args.images, args.limit, config["data"], config["seed"])
    # Levels from 0 to 1 in each batch.
    x = torch.cat([crops.batch(BATCH) for _ in range(SEEN // BATCH)])
    level = torch.linspace(0, 1, BATCH).repeat(SEEN // BATCH)
    latent = torch.cat([model.code(model.analysis(some), of_some)[0] for some, of_some in zip(x.split(BATCH), level.split(BATCH))])
    if args.unrounded:
        model.synthesis = unrounded_of(model, load(args.unrounded))
    s = model.synthesis
    # Scales stay those of the training, which has taken what they clip for granted.
    quant.set_quantising(s, False)
    centre(s, latent)
    quant.set_quantising(s, True, weights=False)
    for _ in range(LEVELLING):
        print(f"{quant.level_channels([Known(model, latent)], x, level, ['synthesis'])} channels have another range", flush=True)
        refine_scales(Known(model, latent[:SCALING]), s, x[:SCALING], level[:SCALING], config["loss"])
    cost = costs(s, latent[torch.randperm(len(latent))[:PROBES]])
    most = lambda cost, count: sorted(cost.argsort(descending=True)[:count].tolist())
    late, hidden = most(cost["out_up"] + cost["act_dw"], args.late), most(cost["act_c"], args.hidden)
    print(f"copies of channels {late} and of hidden units {hidden}", flush=True)
    model.synthesis = with_copies(s, late, hidden)
    config["model"] |= dict(late_digits=1, late_copies=late, hidden_copies=hidden)
    write(pathlib.Path(args.out), checkpoint | {"ema": half(model)})


if __name__ == "__main__":
    main()
