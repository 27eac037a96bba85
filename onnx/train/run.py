"""What every training has: a configuration, a clock or a number of steps, a log, and a state from which an interrupted run goes on.

The configuration file holds all that shapes the result; the command line says where things lie, how long to train and on what. A folder
has one run: the configuration as it was read, `log.jsonl`, `state.pt` (all that is needed to go on, for nobody else), and the weights.
"""

import json
import math
import os
import pathlib
import time
import tomllib

import numpy as np
import torch

import data
from model import load
from muon import MATRIX_UNITS


def configuration(path):
    """What the file says, over what the one beside it says that it names as its `base`."""
    path = pathlib.Path(path)
    config = tomllib.loads(path.read_text())
    base = configuration(path.parent / config.pop("base")) if "base" in config else {}
    return base | {name: base.get(name, {}) | value if isinstance(value, dict) else value for name, value in config.items()}


def learning_rate(share, warm, decay_at):
    """Share of the run -> factor on the learning rate: warm-up, constant, cosine to a hundredth."""
    if share < decay_at:
        return min(1.0, share / warm)
    return min(1.0, share / warm) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (share - decay_at) / (1 - decay_at))))


def set_rates(optimisers, factor):
    """Each group's learning rate: what it was made with, times `factor`."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = group.setdefault("base", group["lr"]) * factor


def smooth(mean, values):
    """The running mean of what is logged, None before there are any."""
    return values.detach() if mean is None else mean.lerp(values.detach(), 0.02)


@torch.no_grad()
def average(ema, module, decay, step):
    """The weights of `module` into their running mean, faster in the first steps."""
    decay = min(decay, (1 + step) / (10 + step))
    for a, b in zip(ema.parameters(), module.parameters()):
        a.lerp_(b, 1 - decay)


def half(module):
    """Its state in fp16, single values as they are: half the file."""
    return {k: v.half() if v.is_floating_point() and v.numel() > 1 else v for k, v in module.state_dict().items()}


def write(path, value):
    partial = path.with_suffix(".partial")
    torch.save(value, partial)
    os.replace(partial, path)


class Run:
    @classmethod
    def of(cls, p):
        """The run that the command line says, whose own options `p` has already."""
        p.add_argument("--config", required=True)
        p.add_argument("--images", required=True, help="folder of shard-*.tar")
        p.add_argument("--out", required=True, help="folder of the run; if it has a state, the run goes on from there")
        p.add_argument("--minutes", type=float, help="how long to train; the schedule follows the time")
        p.add_argument("--steps", type=int, help="how many steps to train instead; the schedule follows them, and the result is the same every time")
        p.add_argument("--stop", type=int, help="stop at this step, to go on later")
        p.add_argument("--limit", type=int, help="use this many pictures (dry runs)")
        p.add_argument("--threads", type=int, default=2)
        p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        p.add_argument("--precision", choices=["bf16", "fp32"], help="of convolutions in floating point; default: bf16 where the device has matrix units")
        p.add_argument("--compile", action="store_true", help="compile the networks: three times the speed on a CPU, after minutes")
        return cls(p.parse_args())

    def __init__(self, args):
        config = configuration(args.config)
        if (args.minutes is None) == (args.steps is None):
            raise SystemExit("one of --minutes and --steps is needed")
        self.args, self.config = args, config
        self.mixed = args.precision == "bf16" or (args.precision is None and (args.device != "cpu" or MATRIX_UNITS))
        self.out = pathlib.Path(args.out)
        self.out.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(args.threads)
        # The momentum of a weight without a gradient decays to denormal numbers, and those take a processor many times as long.
        torch.set_flush_denormal(True)
        torch.manual_seed(config["seed"])
        self.random = np.random.default_rng(config["seed"])
        self.step, self.before, self.start, self.saved = 0, 0.0, time.time(), time.time()
        self.parts = {}

    def crops(self):
        """Random crops of the pictures, as the configuration has them."""
        return data.configured(self.args.images, self.args.limit, self.config["data"], self.random)

    def model(self, checkpoint):
        """The model of a checkpoint. What the run saves has its shape, of which a configuration need not know."""
        model = load(checkpoint)
        self.config["model"] = model.shape
        return model

    def quantised_model(self, checkpoint):
        """The same of one that has its scales already: what is trained now takes them for granted."""
        model = self.model(checkpoint)
        if not model.synthesis.stem.quantising:
            raise SystemExit(f"{checkpoint} is not quantised yet")
        return model

    def autocast(self):
        """Within it convolutions compute in the precision of the run."""
        return torch.autocast(self.args.device, dtype=torch.bfloat16, enabled=self.mixed)

    def forward(self, module):
        """What computes `module` in the precision of the run, compiled if the command says so -> its result in float32."""
        module = torch.compile(module) if self.args.compile else module

        def forward(*inputs):
            with self.autocast():
                return module(*inputs).float()

        return forward

    def seconds(self):
        """Time spent on the run, also before it was interrupted."""
        return self.before + time.time() - self.start

    def share(self):
        """How much of the run is done."""
        return self.step / self.args.steps if self.args.steps else self.seconds() / (60 * self.args.minutes)

    def over(self):
        return self.share() >= 1 or self.step == self.args.stop

    def resume(self, parts, state):
        """`parts`: whatever has a state_dict; `state`: the rest. Returns the state to go on with."""
        self.parts = parts
        path = self.out / "state.pt"
        if path.exists():
            kept = torch.load(path, map_location=self.args.device, weights_only=False)
            if kept["config"] != self.config:
                raise SystemExit(f"{path} is of another configuration; use another folder")
            for name, part in parts.items():
                part.load_state_dict(kept["parts"][name])
            self.step, self.before, state = kept["step"], kept["seconds"], kept["state"]
            self.random.bit_generator.state = kept["numpy"]
            torch.set_rng_state(kept["torch"].cpu())
            if kept["cuda"] and self.args.device != "cpu":
                torch.cuda.set_rng_state_all([s.cpu() for s in kept["cuda"]])
            print(f"goes on from step {self.step}", flush=True)
        (self.out / "config.json").write_text(json.dumps(self.config, indent=1))
        self.start = time.time()
        return state

    def advance(self, module, ema, optimisers, decay):
        """A step of `optimisers` along the gradients of `module` that are there, and one of its running mean; neither if a gradient is
        not finite. Whether they were."""
        finite = bool(torch.isfinite(torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)))
        if finite:
            for optimiser in optimisers:
                optimiser.step()
            average(ema, module, decay, self.step)
        else:
            print(f"step {self.step}: gradient is not finite, skipped", flush=True)
        self.step += 1
        return finite

    def keep(self, state, weights=None, last=False):
        """Saves what is needed to go on, every five minutes, and with it `weights.pt`, if there are weights for others."""
        if not last and time.time() - self.saved < 300:
            return
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        write(self.out / "state.pt", {"parts": parts, "state": state, "step": self.step, "seconds": self.seconds(), "config": self.config,
                                      "numpy": self.random.bit_generator.state, "torch": torch.get_rng_state(),
                                      "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []})  # fmt: skip
        self.saved = time.time()
        if weights is not None:
            self.save_weights("weights.pt", weights)

    def save_weights(self, name, module, **facts):
        """Weights for others, without what only training needs."""
        write(self.out / name, {"ema": half(module), "step": self.step, "config": self.config, **facts})

    def load_weights(self, name, module):
        """Back into the module that they were saved from."""
        kept = torch.load(self.out / name, map_location=self.args.device, weights_only=False)["ema"]
        module.load_state_dict({key: w.float() for key, w in kept.items()})

    def log(self, row):
        with open(self.out / "log.jsonl", "a") as f:
            print(json.dumps(row), file=f)
        print(row, flush=True)
