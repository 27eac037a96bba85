import os
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import EXPORT, ROOT
from PIL import Image


def test_bring_your_own_autoencoder_does_what_it_says(sdl, tmp_path):
    page = (ROOT / "docs" / "models" / "bring-your-own.md").read_text()
    (program,) = re.findall("^```python\n(.*?)^```", page, re.S | re.M)
    (commands,) = re.findall("^```sh\n(.*?)^```", page, re.S | re.M)
    (tmp_path / "mine.py").write_text(program)
    # As in a checkout: its folders, its Python, the program on the path.
    for name in ("tests", "onnx"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    interpreter = tmp_path / ".venv" / "bin" / "python"
    interpreter.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    interpreter.chmod(0o755)
    environment = os.environ | {"PATH": f"{sdl.program.parent}:{os.environ['PATH']}", "SDL_MODEL_DIR": str(tmp_path / "store")}
    shown = subprocess.run(["sh", "-e", "-c", commands], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout
    assert "mine" in shown
    original, decoded = (np.array(Image.open(file).convert("RGB")).astype(float) for file in (ROOT / "tests/pictures/nyc.png", tmp_path / "nyc.png"))
    psnr = 10 * np.log10(255**2 / np.square(original - decoded).mean())
    # 12 numbers for 192 samples: blurred, and clearly the picture.
    assert psnr > 20, psnr
    assert (tmp_path / "nyc.sdl").stat().st_size < 0.2 * (ROOT / "tests/pictures/nyc.png").stat().st_size


@pytest.mark.parametrize("name", ["stable_diffusion", "tiny_autoencoder", "hific"])
def test_help_has_an_example_that_the_arguments_take(name):
    shown = subprocess.run([sys.executable, EXPORT / f"{name}.py", "--help"], check=True, capture_output=True, text=True).stdout
    (example,) = re.findall(rf"python {name}\.py (.*)", shown)
    # Its options are among those that help lists behind the description.
    options = shown[shown.index("options:") :]
    assert all(word in options for word in example.split() if word.startswith("--")), example
