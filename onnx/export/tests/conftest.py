"""The exporters as a user has them: a checkpoint on disk, a command line, a bundle that the program `sdl` imports and uses.

`SDL` is the program (target/debug/sdl by default, built by tests/run), `SDL_SHARED` the folder of models and pictures that are not ours to distribute.
"""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[3]
EXPORT = ROOT / "onnx" / "export"
sys.path.insert(0, str(EXPORT))
torch.set_num_threads(2)


@pytest.fixture(scope="session")
def shared():
    """../shared, where it is."""
    folder = pathlib.Path(os.environ.get("SDL_SHARED", ROOT.parent / "shared"))
    if not (folder / "models").is_dir():
        pytest.skip(f"SKIPPED: {folder}/models is not there, so nothing is known of real weights")
    return folder


@pytest.fixture
def export(monkeypatch):
    """Runs an exporter in this process: `export(module, *arguments)`."""

    def run(module, *arguments):
        import bundle

        monkeypatch.setattr(sys, "argv", [module.__name__ + ".py", *map(str, arguments)])
        bundle.run(module.main)

    return run


@pytest.fixture(scope="session")
def picture():
    """A smooth picture with an edge, (H, W, 3) of uint8; neither side is a multiple of a stride."""
    y, x = np.mgrid[0:83, 0:107] / 100.0
    planes = [np.sin(5 * x + k) * np.cos(4 * y - k) * 0.4 + 0.5 + 0.1 * (x + y > 0.9) for k in range(3)]
    return (np.stack(planes, 2).clip(0, 1) * 255).astype(np.uint8)


class Sdl:
    """The program, with a model store of its own."""

    def __init__(self, folder):
        self.folder = folder
        self.program = pathlib.Path(os.environ.get("SDL", ROOT / "target" / "debug" / "sdl"))
        if not self.program.exists():
            pytest.fail(f"{self.program} is not there: cargo build -p sdl-cli")

    def __call__(self, *arguments):
        environment = os.environ | {"SDL_MODEL_DIR": str(self.folder / "store")}
        return subprocess.run([self.program, *map(str, arguments)], env=environment, check=True, capture_output=True, text=True).stdout

    def round_trip(self, bundle, picture, *options):
        """Imports a bundle; the pixels of a picture that went through a file, and how long that is."""
        original, file, back = (self.folder / name for name in ("picture.png", "picture.sdl", "back.png"))
        Image.fromarray(picture).save(original)
        self("model", "import", bundle)
        self("encode", original, file, "--model", bundle.name, *options)
        self("decode", file, back)
        return np.array(Image.open(back).convert("RGB")), file.stat().st_size


@pytest.fixture
def sdl(tmp_path):
    return Sdl(tmp_path)


def padded(picture, stride):
    """As the encoder pads it: the border repeats. (1, 3, H, W) of float32 in [0, 1]."""
    height, width = picture.shape[:2]
    whole = np.pad(picture, ((0, -height % stride), (0, -width % stride), (0, 0)), mode="edge")
    return torch.from_numpy(whole).permute(2, 0, 1)[None].float() / 255


def pixels(tensor, size):
    """(1, 3, H, W) in [0, 1] as (H, W, 3) of uint8, cropped to `size`."""
    levels = (tensor[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return levels[: size[0], : size[1]]


def far(a, b):
    """Mean absolute difference in levels."""
    return np.abs(a.astype(float) - b.astype(float)).mean()


@torch.no_grad()
def contrast(layer, run, middle, spread):
    """Sets the last layer of a random network so that its output, `run()`, has this mean and standard deviation: a picture that shows something."""
    output = run()
    layer.weight *= spread / output.std()
    layer.bias.copy_((layer.bias - output.mean()) * spread / output.std() + middle)
