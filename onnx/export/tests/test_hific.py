import hific
import pytest
import tomllib
import torch
from conftest import contrast, far, padded, pixels


def checkpoint(path, picture, channels=12, bounded=True):
    """What training with that repository saves, at a fraction of the width and with 2 residual blocks instead of 9."""
    torch.manual_seed(5)
    encoder, generator = hific.Encoder((4, 6, 8, 10, 12), channels), hific.Generator((12, 10, 8, 6, 4), channels, 2, False)
    given = padded(picture, 16) * 2 - 1
    contrast(encoder.conv_block_out[-1], lambda: encoder(given), 0, 4)
    contrast(generator.conv_block_out[-1], lambda: generator(encoder(given)), 0, 0.5)
    state = {f"Encoder.{key}": value for key, value in encoder.state_dict().items()}
    state |= {f"Generator.{key}": value for key, value in generator.state_dict().items()}
    state["Hyperprior.analysis_net.conv1.weight"] = torch.zeros(3, 3)
    settings = {"normalize_input_image": bounded, "latent_channels": channels, "image_dims": (3, 256, 256)}
    torch.save({"model_state_dict": state, "epoch": 3, "steps": 9, "args": settings}, path)
    return encoder, generator


@torch.no_grad()
def test_a_checkpoint_of_the_port_is_a_codec_of_the_program(export, sdl, picture, tmp_path):
    encoder, generator = checkpoint(tmp_path / "hific.pt", picture)
    export(hific, tmp_path / "hific.pt", tmp_path / "hific", "--licence", "Apache-2.0", "--source", "the tests")
    manifest = tomllib.loads((tmp_path / "hific" / "bundle.toml").read_text())
    assert (manifest["latent"]["channels"], manifest["latent"]["stride"], manifest["pixels"]["range"]) == (12, 16, [-1.0, 1.0])
    found, _ = sdl.round_trip(tmp_path / "hific", picture, "-q", "100")
    wanted = pixels(torch.tanh(generator(encoder(padded(picture, 16) * 2 - 1))) / 2 + 0.5, picture.shape)
    assert wanted.std() > 5 and far(found, wanted) < 1, (wanted.std(), far(found, wanted))


def test_the_names_and_shapes_are_those_of_the_published_networks():
    # From that repository's src/network, at the widths of the paper: (filters 60 to 960, 220 channels, 9 blocks).
    encoder, generator = hific.Encoder((60, 120, 240, 480, 960), 220), hific.Generator((960, 480, 240, 120, 60), 220, 9, True)
    shapes = {key: tuple(value.shape) for key, value in (encoder.state_dict() | generator.state_dict()).items()}
    assert shapes["conv_block1.1.weight"] == (60, 3, 7, 7) and shapes["conv_block1.2.gamma"] == (1, 60, 1, 1)
    assert shapes["conv_block5.1.weight"] == (960, 480, 3, 3) and shapes["conv_block_init.0.beta"] == (1, 220, 1, 1)
    assert shapes["conv_block_init.2.weight"] == (960, 220, 3, 3) and shapes["conv_block_init.3.gamma"] == (1, 960, 1, 1)
    assert shapes["resblock_8.conv2.weight"] == (960, 960, 3, 3) and shapes["resblock_8.norm1.gamma"] == (1, 960, 1, 1)
    assert shapes["upconv_block1.0.weight"] == (960, 480, 3, 3) and shapes["upconv_block4.1.beta"] == (1, 60, 1, 1)
    assert encoder.state_dict()["conv_block_out.1.weight"].shape == (220, 960, 3, 3)
    assert shapes["conv_block_out.1.weight"] == (3, 60, 7, 7)
    assert len(encoder.state_dict()) == 5 * 4 + 2 and len(generator.state_dict()) == 6 + 9 * 8 + 4 * 4 + 2


def test_channel_norm_is_that_of_the_paper():
    torch.manual_seed(6)
    x, norm = torch.randn(2, 7, 3, 4), hific.ChannelNorm(7)
    with torch.no_grad():
        norm.gamma.uniform_(0.5, 2), norm.beta.normal_()
        wanted = norm.gamma * (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, keepdim=True) + 1e-3) + norm.beta
        assert torch.allclose(norm(x), wanted, atol=1e-6)


@torch.no_grad()
def test_other_checkpoints_are_refused_and_leave_nothing(export, picture, tmp_path):
    arguments = tmp_path / "x.pt", tmp_path / "hific", "--licence", "Apache-2.0", "--source", "the tests"
    (tmp_path / "x.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(SystemExit, match="no checkpoint"):
        export(hific, *arguments)
    for content in (b"", b"junk" * 10):
        (tmp_path / "x.pt").write_bytes(content)
        with pytest.raises(SystemExit, match="no checkpoint"):
            export(hific, *arguments)
    for saved in ([1, 2], {"model_state_dict": [1, 2]}):
        torch.save(saved, tmp_path / "x.pt")
        with pytest.raises(SystemExit, match="no checkpoint"):
            export(hific, *arguments)
    torch.save({"model_state_dict": {"Encoder.conv_block1.1.weight": torch.zeros(4, 3, 7, 7)}}, tmp_path / "x.pt")
    with pytest.raises(SystemExit, match="encoder or generator"):
        export(hific, *arguments)
    # Noise among the generator's inputs: its residual blocks are wider than what feeds them.
    checkpoint(tmp_path / "x.pt", picture)
    saved = torch.load(tmp_path / "x.pt", weights_only=True)
    saved["model_state_dict"]["Generator.resblock_0.conv1.weight"] = torch.zeros(44, 44, 3, 3)
    torch.save(saved, tmp_path / "x.pt")
    with pytest.raises(SystemExit, match="sample_noise"):
        export(hific, *arguments)
    assert [file.name for file in tmp_path.iterdir()] == ["x.pt"]
