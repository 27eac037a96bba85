"""Turns a latent diffusion model of the Stable Diffusion family into a bundle.

CHECKPOINT is a folder or hub id of diffusers: Stable Diffusion 1.4, 1.5, 2.1, SD-Turbo, or their autoencoder alone (stabilityai/sd-vae-ft-mse).
The bundle has the autoencoder, and the UNet with the empty prompt's embedding inside: the text encoder runs once, here. Betas and what the UNet
predicts come from the checkpoint's own scheduler.

    python stable_diffusion.py stable-diffusion-v1-5/stable-diffusion-v1-5 sd-1.5 --licence CreativeML-OpenRAIL-M --fp16
    sdl model import sd-1.5
    sdl encode photo.png photo.sdl --model sd-1.5

Exporting takes about 12 GB of memory (4 GB with --no-denoiser).
"""

import json
import pathlib

import torch
from torch import nn

import bundle

WEIGHTS = ("*.safetensors", "*.bin")
PARTS = ("vae", "unet", "text_encoder")


class Analysis(nn.Module):
    """Picture to mean and log-variance of the latent, not scaled."""

    def __init__(self, autoencoder):
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, picture):
        posterior = self.autoencoder.encode(picture, return_dict=False)[0]
        return posterior.mean, posterior.logvar


class Synthesis(nn.Module):
    """Latent, not scaled, to picture."""

    def __init__(self, autoencoder):
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latent):
        return self.autoencoder.decode(latent, return_dict=False)[0]


class Denoiser(nn.Module):
    """Scaled noisy latent and timestep to what the UNet predicts for the empty prompt."""

    def __init__(self, unet, prompt):
        super().__init__()
        self.unet = unet
        self.register_buffer("prompt", prompt)
        self.step = 2 ** (len(unet.config.down_block_types) - 1)

    def forward(self, sample, timestep):
        # The UNet halves the latent a few times; sizes that do not divide are continued by their border.
        height, width = sample.shape[2:]
        rows = torch.arange((height + self.step - 1) // self.step * self.step).clamp(max=height - 1)
        columns = torch.arange((width + self.step - 1) // self.step * self.step).clamp(max=width - 1)
        whole = sample.index_select(2, rows).index_select(3, columns)
        return self.unet(whole, timestep, self.prompt, return_dict=False)[0][:, :, :height, :width]


def fetch(checkpoint, denoiser):
    """The folder of a checkpoint; a hub id is downloaded, without the files of other frameworks."""
    folder = pathlib.Path(checkpoint)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    parts = (*PARTS, "tokenizer", "scheduler") if denoiser else ("vae",)
    wanted = [f"{part}/*.{ending}" for part in parts for ending in ("json", "txt", "safetensors")]
    with bundle.reading(checkpoint):
        return pathlib.Path(snapshot_download(checkpoint, allow_patterns=[*wanted, "*.json", "LICENSE*", "diffusion_pytorch_model.safetensors"]))


def schedule(config):
    """Schedule and prediction type as the manifest has them, from a scheduler's configuration."""
    steps = config.get("num_train_timesteps", 1000)
    prediction = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}.get(config.get("prediction_type", "epsilon"))
    if prediction is None:
        raise bundle.Refused(f"the scheduler's prediction_type is {config['prediction_type']}; epsilon, v_prediction and sample are known")
    if config.get("rescale_betas_zero_snr"):
        raise bundle.Refused("the scheduler rescales its betas to no signal at the last step; that is not supported")
    kind, ends = config.get("beta_schedule", "linear"), {key: config.get(key, value) for key, value in (("beta_start", 0.0001), ("beta_end", 0.02))}
    if config.get("trained_betas"):
        result = {"kind": "table", "alphas_cumprod": torch.cumprod(1 - torch.tensor(config["trained_betas"], dtype=torch.float64), 0).tolist()}
    elif kind in ("linear", "scaled_linear"):
        result = {"kind": kind, **ends, "train_steps": steps}
    elif kind == "squaredcos_cap_v2":
        result = {"kind": "cosine", "train_steps": steps}
    else:
        raise bundle.Refused(f"the scheduler's beta_schedule is {kind}; linear, scaled_linear and squaredcos_cap_v2 are known")
    return {"prediction": prediction, "schedule": result}


def empty_prompt(folder, variant):
    """The text encoder's last hidden state for "", (1, tokens, features)."""
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", variant=variant, dtype=torch.float32).eval()
    tokens = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return encoder(tokens.input_ids)[0]


def unet(folder, variant, channels):
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel.from_pretrained(folder / "unet", variant=variant, torch_dtype=torch.float32)
    if (model.config.in_channels, model.config.out_channels) != (channels, channels):
        raise bundle.Refused(f"the UNet takes {model.config.in_channels} channels, and the latent has {channels}: an inpainting or upscaling model?")
    if model.config.addition_embed_type or model.config.class_embed_type:
        raise bundle.Refused("the UNet wants more than a prompt (Stable Diffusion XL?); --no-denoiser leaves it out")
    return model


def main():
    from diffusers import AutoencoderKL

    parser = bundle.arguments(__doc__, "CreativeML-OpenRAIL-M")
    parser.add_argument("--no-denoiser", action="store_true", help="only the autoencoder")
    parser.add_argument("--variant", help="of the checkpoint's files, e.g. fp16")
    args = bundle.checked(parser.parse_args())
    folder = fetch(args.checkpoint, not args.no_denoiser)
    source = revision = None
    if not pathlib.Path(args.checkpoint).is_dir():
        source, revision = f"https://huggingface.co/{args.checkpoint}", folder.name
    alone = not (folder / "vae").is_dir()
    home = folder if alone else folder / "vae"
    denoiser = {}
    # Before the export of the autoencoder, which takes minutes.
    if not alone and not args.no_denoiser:
        scheduler = pathlib.Path("scheduler", "scheduler_config.json")
        bundle.required(folder, scheduler, *PARTS[1:], "tokenizer")
        with bundle.reading(folder / scheduler):
            denoiser = {"denoiser": schedule(json.loads((folder / scheduler).read_text()))}
    with bundle.reading(home):
        autoencoder = AutoencoderKL.from_pretrained(home, variant=args.variant, torch_dtype=torch.float32)
    config = autoencoder.config
    channels, stride = config.latent_channels, 2 ** (len(config.block_out_channels) - 1)
    with bundle.Bundle(args.out) as writer:
        picture = {"picture": lambda h, w: torch.rand(1, 3, stride * h, stride * w) * 2 - 1}
        writer.graph("analysis", Analysis(autoencoder), picture, ["mean", "log_variance"], args.fp16)
        # Unit variance in units of the scaled latent.
        latent = {"latent": lambda h, w: torch.randn(1, channels, h, w) / config.scaling_factor}
        writer.graph("synthesis", Synthesis(autoencoder), latent, ["pixels"], args.fp16)
        del autoencoder
        files = [file for pattern in WEIGHTS for file in home.glob(pattern)]
        if denoiser:
            with bundle.reading(folder):
                model = Denoiser(unet(folder, args.variant, channels), empty_prompt(folder, args.variant))
            inputs = {"sample": lambda h, w: torch.randn(1, channels, h, w), "timestep": lambda h, w: torch.randint(0, 1000, (1,))}
            writer.graph("denoiser", model, inputs, ["prediction"], args.fp16)
            files += [file for part in PARTS[1:] for pattern in WEIGHTS for file in (folder / part).glob(pattern)]
        for file in folder.glob("LICENSE*"):
            writer.add(file.name, file)
        writer.finish(bundle.provenance(args, files, source, revision, folder) | {
            "latent": {"channels": channels, "stride": stride, "scale": config.scaling_factor, "shift": config.shift_factor or 0.0, "step": 0.4},
            "pixels": {"range": [-1.0, 1.0]},
            "tiling": {"margin": 8, "size": config.sample_size // stride},
        } | denoiser)  # fmt: skip
    print(f"{args.out} is written; next: sdl model import {args.out}")


if __name__ == "__main__":
    bundle.run(main)
