import re

import numpy as np
import onnxruntime
import pytest
import tiny_autoencoder
import tomllib
import torch
from conftest import ROOT, contrast, far, padded, pixels
from PIL import Image
from torch import nn

# From the models' MANIFEST: round trip on Kodak, unquantised, dB.
TAEF2 = {"03": 33.23, "08": 26.16, "23": 33.35}
VAELIGHT = {"03": 27.31, "08": 19.16, "23": 25.89}


def psnr(a, b):
    return 10 * np.log10(255**2 / np.square(a.astype(float) - b).mean())


def graphs(folder):
    return [onnxruntime.InferenceSession(folder / f"{role}.onnx", providers=["CPUExecutionProvider"]) for role in ("analysis", "synthesis")]


def round_trip(folder, picture):
    """Through the graphs alone, as the manifest says to use them."""
    low, high = tomllib.loads((folder / "bundle.toml").read_text())["pixels"]["range"]
    analysis, synthesis = graphs(folder)
    (latent,) = analysis.run(None, {analysis.get_inputs()[0].name: (padded(picture, 8) * (high - low) + low).numpy()})
    (result,) = synthesis.run(None, {"latent": latent})
    return pixels(torch.from_numpy((result - low) / (high - low)), picture.shape)


@pytest.mark.parametrize("model, expected", [("taef2", TAEF2), ("vaelight", VAELIGHT)])
def test_the_bundle_of_real_weights_reaches_what_their_manifest_says(model, expected, shared, export, sdl, tmp_path):
    denoiser = ["--denoiser", ROOT / "onnx" / "models" / "taef2-denoiser"] if model == "taef2" else []
    export(tiny_autoencoder, shared / "models" / model, tmp_path / model, "--licence", "MIT", "--source", "the tests", *denoiser)
    manifest = tomllib.loads((tmp_path / model / "bundle.toml").read_text())
    if denoiser:
        # The latent is scaled as the denoiser was trained, and read by the program with all of its parts.
        assert manifest["latent"]["scale"] == pytest.approx(1.248, abs=1e-3) and manifest["denoiser"]["prediction"] == "v"
        assert set(manifest["graphs"]) == {"analysis", "synthesis", "denoiser"} == {name.removesuffix(".onnx") for name in manifest["sums"]} - {"LICENSE"}
        assert "denoiser" in sdl("model", "show", tmp_path / model)
    for name, wanted in expected.items():
        picture = np.array(Image.open(shared / "images" / "kodak" / f"{name}.png").convert("RGB"))
        found = psnr(round_trip(tmp_path / model, picture), picture)
        # VAElight's own program scales [-1, 1] by 127 instead of 127.5.
        assert abs(found - wanted) < 0.1, (name, found, wanted)


def original(folder, picture, width=8, channels=6, pooled=True):
    """A checkpoint in the original layout: taef2's layers at another width, random."""
    from tiny_autoencoder import Block, Clamp

    def conv(channels_in, channels_out, **kwargs):
        return nn.Conv2d(channels_in, channels_out, 3, padding=1, **kwargs)

    def blocks(pool=0):
        return [Block(width, width, pool) for _ in range(3)]

    half = {"stride": 2, "bias": False}
    pool = 16 if pooled else 0
    torch.manual_seed(3)
    encoder = nn.Sequential(conv(3, width), Block(width, width, 0), conv(width, width, **half), *blocks(), conv(width, width, **half), *blocks(),
                            conv(width, width, **half), *blocks(pool), conv(width, channels))  # fmt: skip
    up = [nn.Upsample(scale_factor=2), conv(width, width, bias=False)]
    decoder = nn.Sequential(Clamp(), conv(channels, width), nn.ReLU(), *blocks(pool), *up, *blocks(), *up, *blocks(), *up, Block(width, width, 0),
                            conv(width, 3))  # fmt: skip
    given = padded(picture, 8)
    contrast(encoder[-1], lambda: encoder(given), 0, 1)
    contrast(decoder[-1], lambda: decoder(encoder(given)), 0.5, 0.2)
    folder.mkdir()
    for name, network in (("encoder", encoder), ("decoder", decoder)):
        torch.save({key: value.half() for key, value in network.state_dict().items()}, folder / f"toy_{name}.pth")
        network.load_state_dict(torch.load(folder / f"toy_{name}.pth"))
    (folder / "LICENSE").write_text("none")
    return encoder.eval(), decoder.eval()


@torch.no_grad()
def test_a_checkpoint_in_the_original_layout_is_a_codec_of_the_program(export, sdl, picture, tmp_path):
    encoder, decoder = original(tmp_path / "checkpoint", picture)
    arguments = "--licence", "MIT", "--source", "the tests", "--revision", "7"
    export(tiny_autoencoder, tmp_path / "checkpoint", tmp_path / "toy", *arguments)
    found, _ = sdl.round_trip(tmp_path / "toy", picture, "-q", "100")
    wanted = pixels(decoder(encoder(padded(picture, 8))), picture.shape)
    assert wanted.std() > 5 and far(found, wanted) < 1, (wanted.std(), far(found, wanted))
    manifest = tomllib.loads((tmp_path / "toy" / "bundle.toml").read_text())
    assert (manifest["licence"], manifest["source"], manifest["revision"]) == ("MIT", "the tests", "7")
    assert set(manifest["sums"]) == {"analysis.onnx", "synthesis.onnx", "LICENSE"}
    assert set(manifest["export"]["sha256"]) == {"toy_encoder.pth", "toy_decoder.pth"}

    # The same checkpoint becomes the same bundle, wherever and by whatever path it is made.
    (tmp_path / "there").mkdir()
    export(tiny_autoencoder, tmp_path / "checkpoint", tmp_path / "there" / "toy", *arguments)
    for file in (tmp_path / "toy").iterdir():
        assert file.read_bytes() == (tmp_path / "there" / "toy" / file.name).read_bytes(), file.name
        assert b"site-packages" not in file.read_bytes() and bytes(tmp_path) not in file.read_bytes()


@torch.no_grad()
def test_an_autoencoder_tiny_of_diffusers_is_a_codec_of_the_program(export, sdl, picture, tmp_path):
    from diffusers import AutoencoderTiny

    torch.manual_seed(4)
    model = AutoencoderTiny(latent_channels=4, encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4)
    given = padded(picture, 8) * 2 - 1
    contrast(model.encoder.layers[-1], lambda: model.encode(given).latents, 0, 1)
    # Behind its last layer the decoder goes from [0, 1] to [-1, 1].
    contrast(model.decoder.layers[-1], lambda: model.decode(model.encode(given).latents).sample / 2 + 0.5, 0.5, 0.2)
    model.save_pretrained(tmp_path / "checkpoint")
    export(tiny_autoencoder, tmp_path / "checkpoint", tmp_path / "toy", "--licence", "MIT", "--source", "the tests", "--fp16")
    found, _ = sdl.round_trip(tmp_path / "toy", picture, "-q", "100")
    wanted = pixels(model.decode(model.encode(given).latents).sample / 2 + 0.5, picture.shape)
    assert wanted.std() > 5 and far(found, wanted) < 1, (wanted.std(), far(found, wanted))


def test_what_is_no_tiny_autoencoder_is_refused_and_leaves_nothing(export, tmp_path):
    (tmp_path / "checkpoint").mkdir()
    arguments = tmp_path / "checkpoint", tmp_path / "toy", "--licence", "MIT", "--source", "the tests"
    with pytest.raises(SystemExit, match="0 files"):
        export(tiny_autoencoder, *arguments)
    for half in ("encoder", "decoder"):
        torch.save({"7.weight": torch.zeros(4, 3, 3, 3)}, tmp_path / "checkpoint" / f"a_{half}.pth")
    with pytest.raises(SystemExit, match="layer 7"):
        export(tiny_autoencoder, *arguments)
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("arguments, message", [
    (["--name", "Toy"], "the name is 'Toy'"), (["--name", ".toy"], "the name is"), (["--name", "a" * 65], "the name is"), (["--version", "1 0"], "--version is '1 0'"),
    (["--licence", "MIT\x1b[2J"], "--licence must not have control"), (["--source", ""], "--source is missing"), (["--denoiser", "nowhere"], "nowhere has no denoiser.onnx"),
])  # fmt: skip
def test_what_could_not_be_imported_is_refused_before_anything_is_read(export, tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr(tiny_autoencoder, "original", None)
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(SystemExit, match=re.escape(message)):
        export(tiny_autoencoder, tmp_path / "checkpoint", tmp_path / "toy", "--licence", "MIT", "--source", "the tests", *arguments)
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint"]


def test_a_garbled_checkpoint_is_refused_in_one_line(export, tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()

    def refusal():
        with pytest.raises(SystemExit) as refused:
            export(tiny_autoencoder, folder, tmp_path / "toy", "--licence", "MIT", "--source", "the tests")
        assert [file.name for file in tmp_path.iterdir()] == ["checkpoint"]
        return str(refused.value)

    for content in (b"", b"junk" * 10):
        for half in ("encoder", "decoder"):
            (folder / f"a_{half}.pth").write_bytes(content)
        assert "a_encoder.pth cannot be read" in refusal()
    for weights in ({}, {"x.weight": torch.zeros(1)}, {"0.weight": 3}, [1, 2]):
        torch.save(weights, folder / "a_encoder.pth")
        assert "encoder" in refusal()
    (folder / "VAEpreview.onnx").write_bytes(b"junk")
    assert "has no VAEencoder.onnx" in refusal()
    (folder / "VAEencoder.onnx").write_bytes(b"junk")
    assert "VAEencoder.onnx cannot be read" in refusal()
    for file in folder.iterdir():
        file.unlink()
    (folder / "config.json").write_text("{")
    refusal()
