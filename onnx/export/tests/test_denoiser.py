"""The arithmetic of onnx/train/denoiser.py; what its network gains is in docs/results/denoiser.md."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

sys.path.insert(0, str(ROOT / "onnx" / "train"))
import denoiser  # noqa: E402


def test_what_the_network_is_asked_for_leads_back_to_the_clean_latent():
    random = torch.Generator().manual_seed(1)
    z, abar = torch.randn(6, 5, 7, 9, generator=random), denoiser.alphas_cumprod()
    x, timestep, v = denoiser.corrupt(z, abar, random)
    signal, noise = (root.view(-1, 1, 1, 1) for root in (abar[timestep].sqrt(), (1 - abar[timestep]).sqrt()))
    assert torch.allclose(signal * x - noise * v, z, atol=1e-4)
    assert not torch.allclose(x / signal, z, atol=1e-2)


def test_the_quantiser_of_the_training_is_that_of_the_encoder():
    random = torch.Generator().manual_seed(2)
    z, step = torch.randn(2, 3, 11, 13, generator=random) + 0.3, torch.full((2, 1, 1, 1), 0.7)
    nearest = denoiser.quantise(z, step, 0.5)
    assert (nearest - z).abs().max() <= 0.35 + 1e-5
    # Every value that occurs is a whole number of steps from the channel's median.
    medians = z.flatten(2).median(2).values[:, :, None, None]
    assert np.allclose(((nearest - medians) / 0.7).round().numpy(), ((nearest - medians) / 0.7).numpy(), atol=1e-4)
    # A higher threshold keeps more values on it.
    assert (denoiser.quantise(z, step, 0.65) == medians).sum() > (nearest == medians).sum()


@torch.no_grad()
def test_the_trained_denoiser_comes_closer_to_the_clean_latent_of_a_picture_it_has_not_seen(shared):
    import tiny_autoencoder

    analysis, _, _ = tiny_autoencoder.original(shared / "models" / "taef2")
    picture = torch.from_numpy(np.array(Image.open(ROOT / "tests" / "pictures" / "nyc.png").convert("RGB"))).permute(2, 0, 1)[None] / 255
    network, checkpoint = denoiser.load(ROOT / "onnx" / "models" / "taef2-denoiser.pt")
    gains = denoiser.gains(network, analysis.float()(picture) * checkpoint["scale"])
    # One step at the steps of a quantiser from 1 to 4 standard deviations, dB of the latent's error; on crops held out from training 0.6 to 1.3.
    assert min(gains[f"gain_{step}"] for step in (1, 2, 3, 4)) > 0.2, gains


@pytest.fixture
def gst_launch(sdl, tmp_path):
    """Runs a pipeline with the plugin that lies beside the program, and its models."""
    plugin = sdl.program.with_name("libgstsdl.so")
    if not shutil.which("gst-launch-1.0") or not plugin.exists():
        pytest.skip(f"SKIPPED: no gst-launch-1.0, or no {plugin}, so nothing is known of sdldec and real denoisers")
    folder = tmp_path / "plugin"
    folder.mkdir()
    shutil.copy(plugin, folder)
    environment = os.environ | {
        "SDL_MODEL_DIR": str(sdl.folder / "store"),
        "GST_PLUGIN_PATH": str(folder),
        "GST_REGISTRY": str(tmp_path / "registry.bin"),
        "G_DEBUG": "fatal_warnings",
    }

    def run(pipeline):
        subprocess.run(["gst-launch-1.0", "-q", *pipeline.split()], env=environment, check=True, cwd=tmp_path, timeout=300)

    return run


def test_sdldec_denoises_in_as_many_steps_as_the_program(shared, export, sdl, gst_launch, tmp_path):
    import tiny_autoencoder

    folder = tmp_path / "taef2"
    denoiser_folder = ROOT / "onnx" / "models" / "taef2-denoiser"
    export(tiny_autoencoder, shared / "models" / "taef2", folder, "--licence", "MIT", "--source", "the tests", "--denoiser", denoiser_folder)
    sdl("model", "import", folder)
    # Rows of four samples without padding.
    Image.open(ROOT / "tests" / "pictures" / "nyc.png").convert("RGB").crop((0, 0, 128, 96)).save(tmp_path / "picture.png")
    sdl("encode", tmp_path / "picture.png", tmp_path / "picture.sdl", "--model", "taef2", "--quality", "12")
    seen = []
    # -1 is what the file says.
    for steps in (-1, 0, 1, 4):
        sdl("decode", tmp_path / "picture.sdl", tmp_path / "back.png", *(["--denoise-steps", steps] if steps >= 0 else []))
        gst_launch(f"filesrc location=picture.sdl ! sdldec denoise-steps={steps} ! filesink location=back.rgb")
        back = np.array(Image.open(tmp_path / "back.png").convert("RGB"))
        assert (tmp_path / "back.rgb").read_bytes() == back.tobytes(), steps
        seen.append(back.tobytes())
    assert len(set(seen)) == 3 and seen[0] in seen[2:]
