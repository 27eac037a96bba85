import json

import numpy as np
import onnx
import onnxruntime
import pytest
import stable_diffusion
import tomllib
import torch
from conftest import contrast, far, padded, pixels


def autoencoder(folder, picture):
    """Stable Diffusion's autoencoder with its four resolutions, at an eighth of the width or less."""
    from diffusers import AutoencoderKL

    torch.manual_seed(7)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    model = AutoencoderKL(**blocks, block_out_channels=(8, 8, 16, 16), norm_num_groups=4, latent_channels=4, sample_size=512).eval()
    given = padded(picture, 8) * 2 - 1
    contrast(model.quant_conv, lambda: model.encode(given).latent_dist.mean, 0, 5)
    contrast(model.decoder.conv_out, lambda: model.decode(model.encode(given).latent_dist.mean).sample, 0, 0.4)
    model.save_pretrained(folder)
    return model


def diffusion(folder, scheduler):
    """UNet, text encoder, tokenizer and scheduler beside the autoencoder."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(8)
    unet = UNet2DConditionModel(block_out_channels=(8, 16, 16, 16), norm_num_groups=4, cross_attention_dim=12, attention_head_dim=4,
                                layers_per_block=1, sample_size=64).eval()  # fmt: skip
    config = CLIPTextConfig(vocab_size=5, hidden_size=12, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
                            max_position_embeddings=9, bos_token_id=0, eos_token_id=1)  # fmt: skip
    text = CLIPTextModel(config).eval()
    unet.save_pretrained(folder / "unet")
    text.save_pretrained(folder / "text_encoder")
    (folder / "tokenizer").mkdir()
    words = ["<|startoftext|>", "<|endoftext|>", "a", "b</w>", "ab</w>"]
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "CLIPTokenizer", "model_max_length": 9, "bos_token": words[0], "eos_token": words[1], "pad_token": words[1],
        "unk_token": words[1]}))  # fmt: skip
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return unet, text


SCHEDULER = {"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}


@torch.no_grad()
def test_a_checkpoint_of_stable_diffusion_is_a_codec_of_the_program_with_a_denoiser(export, sdl, picture, tmp_path):
    model = autoencoder(tmp_path / "checkpoint" / "vae", picture)
    unet, text = diffusion(tmp_path / "checkpoint", SCHEDULER | {"prediction_type": "v_prediction"})
    export(stable_diffusion, tmp_path / "checkpoint", tmp_path / "toy", "--licence", "OpenRAIL", "--source", "the tests")
    manifest = tomllib.loads((tmp_path / "toy" / "bundle.toml").read_text())
    assert manifest["latent"] == {"channels": 4, "stride": 8, "scale": 0.18215, "shift": 0.0, "step": 0.4}
    assert manifest["graphs"]["analysis"]["outputs"] == ["mean", "log_variance"]
    schedule = {"kind": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "train_steps": 1000}
    assert manifest["denoiser"] == {"prediction": "v", "schedule": schedule}
    assert sorted(manifest["export"]["sha256"]) == [f"{part}/{name}.safetensors" for part, name in (
        ("text_encoder", "model"), ("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"))]  # fmt: skip

    found, _ = sdl.round_trip(tmp_path / "toy", picture, "-q", "100")
    posterior = model.encode(padded(picture, 8) * 2 - 1).latent_dist
    wanted = pixels(model.decode(posterior.mean).sample / 2 + 0.5, picture.shape)
    assert wanted.std() > 5 and far(found, wanted) < 1, (wanted.std(), far(found, wanted))

    # The denoiser knows the empty prompt: start of text, then eight times its end.
    prompt = text(torch.tensor([[0] + [1] * 8]))[0]
    sample, timestep = torch.randn(1, 4, 8, 16), torch.tensor([321])
    denoiser = onnxruntime.InferenceSession(tmp_path / "toy" / "denoiser.onnx", providers=["CPUExecutionProvider"])
    (predicted,) = denoiser.run(None, {"sample": sample.numpy(), "timestep": timestep.numpy()})
    assert np.abs(predicted - unet(sample, timestep, prompt).sample.numpy()).max() < 1e-4
    # And it is not the same without it.
    assert np.abs(predicted - unet(sample, timestep, prompt * 0).sample.numpy()).max() > 1e-3


@torch.no_grad()
def test_weights_in_half_precision_are_half_the_file_and_a_large_graph_has_a_file_of_weights(export, sdl, picture, tmp_path, monkeypatch):
    import bundle

    model = autoencoder(tmp_path / "checkpoint", picture)
    # As if a file ended at 50 kB instead of 2 GB.
    monkeypatch.setattr(bundle, "LARGEST_GRAPH", 50_000)
    export(stable_diffusion, tmp_path / "checkpoint", tmp_path / "half", "--licence", "OpenRAIL", "--source", "the tests", "--fp16")
    graph = onnx.load(tmp_path / "half" / "synthesis.onnx", load_external_data=False).graph
    large = [value for value in graph.initializer if np.prod(value.dims) >= bundle.LEAST_HALVED and value.data_type != onnx.TensorProto.INT64]
    assert large and all(value.data_type == onnx.TensorProto.FLOAT16 for value in large)
    single = 4 * sum(value.numel() for part in (model.decoder, model.post_quant_conv) for value in part.parameters())
    assert (tmp_path / "half" / "synthesis.onnx.data").stat().st_size < 0.6 * single
    manifest = tomllib.loads((tmp_path / "half" / "bundle.toml").read_text())
    assert manifest["graphs"]["synthesis"]["external"] == ["synthesis.onnx.data"] and "synthesis.onnx.data" in manifest["sums"]
    found, _ = sdl.round_trip(tmp_path / "half", picture, "-q", "100")
    wanted = pixels(model.decode(model.encode(padded(picture, 8) * 2 - 1).latent_dist.mean).sample / 2 + 0.5, picture.shape)
    assert far(found, wanted) < 1


def tamper(path):
    """Another value in the first convolution's bias."""
    model = onnx.load(path)
    value = next(value for value in model.graph.initializer if value.name.endswith("conv_in.bias"))
    changed = onnx.numpy_helper.to_array(value).copy()
    changed[0] += 0.1
    value.CopyFrom(onnx.numpy_helper.from_array(changed, value.name))
    onnx.save(model, path)


def test_a_graph_that_does_other_than_pytorch_is_refused_and_leaves_nothing(export, picture, tmp_path, monkeypatch):
    import bundle

    autoencoder(tmp_path / "checkpoint", picture)
    save = bundle.save

    def damaged(model, path, *external):
        save(model, path, *external)
        tamper(path)

    monkeypatch.setattr(bundle, "save", damaged)
    with pytest.raises(SystemExit, match="analysis.onnx: `mean` differs from PyTorch's by"):
        export(stable_diffusion, tmp_path / "checkpoint", tmp_path / "toy", "--licence", "OpenRAIL", "--source", "the tests")
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint"]


def test_a_checkpoint_that_lacks_a_part_or_is_garbled_is_refused_before_the_export(export, picture, tmp_path, monkeypatch):
    import bundle

    autoencoder(tmp_path / "checkpoint" / "vae", picture)
    monkeypatch.setattr(bundle, "Bundle", None)
    arguments = tmp_path / "checkpoint", tmp_path / "toy", "--licence", "OpenRAIL", "--source", "the tests"
    with pytest.raises(SystemExit, match="checkpoint has no scheduler/scheduler_config.json"):
        export(stable_diffusion, *arguments)
    diffusion(tmp_path / "checkpoint", SCHEDULER)
    (tmp_path / "checkpoint" / "scheduler" / "scheduler_config.json").write_text("{")
    with pytest.raises(SystemExit, match="scheduler_config.json cannot be read"):
        export(stable_diffusion, *arguments)
    (tmp_path / "checkpoint" / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"junk")
    with pytest.raises(SystemExit, match="vae"):
        export(stable_diffusion, *arguments, "--no-denoiser")


def test_schedules_are_read_as_diffusers_reads_them():
    from diffusers import DDIMScheduler

    for config in (SCHEDULER, {"beta_schedule": "linear", "num_train_timesteps": 50}, {"trained_betas": [0.1, 0.2, 0.3]}):
        known = {key: value for key, value in config.items() if not key.startswith("_")}
        wanted = DDIMScheduler(**known).alphas_cumprod.double()
        match stable_diffusion.schedule(config)["schedule"]:
            case {"kind": "table", "alphas_cumprod": found}:
                found = torch.tensor(found, dtype=torch.float64)
            case {"kind": kind, "beta_start": start, "beta_end": end, "train_steps": steps}:
                power = {"linear": 1, "scaled_linear": 2}[kind]
                roots = torch.linspace(start ** (1 / power), end ** (1 / power), steps, dtype=torch.float64)
                found = torch.cumprod(1 - roots**power, 0)
        assert torch.allclose(found, wanted, rtol=1e-4), config
    assert stable_diffusion.schedule({"beta_schedule": "squaredcos_cap_v2"}) == {"prediction": "epsilon", "schedule": {"kind": "cosine", "train_steps": 1000}}


@torch.no_grad()
def test_the_autoencoder_of_stable_diffusion_1_is_exported_at_its_full_size(export, picture, tmp_path):
    from diffusers import AutoencoderKL

    torch.manual_seed(9)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    model = AutoencoderKL(**blocks, block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512)
    assert sum(value.numel() for value in model.parameters()) == 83_653_863
    model.save_pretrained(tmp_path / "checkpoint")
    del model
    export(stable_diffusion, tmp_path / "checkpoint", tmp_path / "sd", "--licence", "none", "--source", "random numbers", "--fp16")
    sizes = [(tmp_path / "sd" / f"{role}.onnx").stat().st_size for role in ("analysis", "synthesis")]
    assert 68e6 < sizes[0] < 70e6 and 98e6 < sizes[1] < 101e6, sizes
