"""The trainings of onnx/train, in small: that they can be interrupted, what they write, and what judges the pictures."""

import copy
import io
import json
import sys
import tarfile
import zipfile

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import ROOT
from onnx import numpy_helper
from PIL import Image

sys.path.insert(0, str(ROOT / "onnx" / "train"))
import carry  # noqa: E402
import correction  # noqa: E402
import data  # noqa: E402
import dormant  # noqa: E402
import entropy  # noqa: E402
import export  # noqa: E402
import features  # noqa: E402
import gptq  # noqa: E402
import grow  # noqa: E402
import model  # noqa: E402
import natural  # noqa: E402
import quant  # noqa: E402
import refine  # noqa: E402
import renderer  # noqa: E402
import run  # noqa: E402
import synthesis  # noqa: E402
import tables  # noqa: E402
import train  # noqa: E402

# Far too small to be of use, and of the shape of the real ones.
SMALL = {
    "model": dict(channels=8, width=16, depthwise=12, hidden=24, early_depth=1, encoder_depth=1, decoder_depth=1, hyper_channels=4, anchors=3, lambda_min=0.001, lambda_max=0.05),
    "data": dict(crop=192, shrink=[1.0], least=192),
    "optimiser": dict(batch=1),
    # The decoder is quantised from step 25 on, and an interruption at 15 is amid the look at its activations.
    "stages": dict(quantise=0.0),
}
NATURAL = {
    "data": dict(crops=5, held_out=2, crop=192),
    "optimiser": dict(batch=1),
    "loss": dict(adversarial_from=0.2, adversarial_full=0.6),
    "held_out": dict(every=4),
}


def configuration(name, changes, path):
    """The real configuration with some of its values replaced, as a file."""
    import tomli_w

    config = run.configuration(ROOT / "onnx" / "train" / name)
    for part, values in changes.items():
        config[part] |= values
    path.write_text(tomli_w.dumps(config))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Five pictures, the configurations, and made-up weights for the network of the feature distance."""
    place = tmp_path_factory.mktemp("training")
    random = np.random.default_rng(5)
    with tarfile.open(place / "shard-0.tar", "w") as tar:
        for name in "abcde":
            small = Image.fromarray(random.integers(0, 256, (25, 30, 3), dtype=np.uint8))
            packed = io.BytesIO()
            small.resize((330, 300), Image.BICUBIC).save(packed, "PNG")
            info = tarfile.TarInfo(f"{name}.png")
            info.size = len(packed.getvalue())
            tar.addfile(info, io.BytesIO(packed.getvalue()))
    configuration("train.toml", SMALL, place / "model.toml")
    configuration("natural.toml", NATURAL, place / "natural.toml")
    shapes = {"conv1": (8, 3, 3)}
    for layer in range(2, 10):
        shapes |= {f"fire{layer}_squeeze1x1": (4, 8, 1), f"fire{layer}_expand1x1": (4, 4, 1), f"fire{layer}_expand3x3": (4, 4, 3)}
    tensors = []
    for name, (out, cin, kernel) in shapes.items():
        tensors.append(numpy_helper.from_array(random.normal(0, 0.3, (out, cin, kernel, kernel)).astype(np.float32), f"p.{name}_weight"))
        tensors.append(numpy_helper.from_array(np.zeros(out, np.float32), f"p.{name}_bias"))
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], tensors)), place / "features.onnx")
    return place


def called(monkeypatch, module, *words, **options):
    words = [*words, *(word for name, value in options.items() for word in (f"--{name}", str(value)))]
    monkeypatch.setattr(sys, "argv", [module.__name__ + ".py", *words])
    module.main()


def command(monkeypatch, module, **options):
    called(monkeypatch, module, **options, threads=1, device="cpu")


def exported(monkeypatch, checkpoint, place, out, **options):
    """The files of the bundle that a checkpoint becomes."""
    monkeypatch.setattr(export.data, "load_shards", lambda *_, **__: [torch.randint(0, 256, (560, 560, 3), dtype=torch.uint8)])
    called(monkeypatch, export, checkpoint=checkpoint, images=place, out=out, crops=8, **options)
    return {file.name: file.read_bytes() for file in out.iterdir()}


def packed(monkeypatch, trained, place, folder):
    """The files of the small model's bundle, and the bundle."""
    files = exported(monkeypatch, trained / "weights.pt", place, folder / "before", generation=6)
    with zipfile.ZipFile(folder / "before.sdlm", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return files, folder / "before.sdlm"


def weights(path):
    return torch.load(path, weights_only=True)["ema"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def tuned(monkeypatch, module, place, name, steps, **arguments):
    """Tunes the weights in `whole` in one go, into the folder `name`, and interrupted half way, which must give the same; what it moved."""
    for out, stops in ((name, [{}]), (f"{name}-halves", [{"stop": steps // 2}, {}])):
        for stop in stops:
            command(monkeypatch, module, **arguments, steps=steps, out=place / out, **stop)
    old, new, halves = (weights(place / folder / "weights.pt") for folder in ("whole", name, f"{name}-halves"))
    assert same(new, halves)
    return {key for key in new if key not in old or not torch.equal(old[key], new[key])}


@pytest.fixture
def trained(place, monkeypatch):
    """The small model of 30 steps in one go."""
    if not (place / "whole" / "weights.pt").exists():
        command(monkeypatch, train, config=place / "model.toml", images=place, out=place / "whole", steps=30)
    return place / "whole"


def test_an_interrupted_training_gives_the_weights_of_one_in_one_go(place, trained, monkeypatch):
    halves = place / "halves"
    arguments = dict(config=place / "model.toml", images=place, out=halves, steps=30)
    command(monkeypatch, train, **arguments, stop=15)
    assert not same(weights(halves / "weights.pt"), weights(trained / "weights.pt"))
    command(monkeypatch, train, **arguments)
    assert same(weights(halves / "weights.pt"), weights(trained / "weights.pt"))
    raw = [torch.load(folder / "state.pt", weights_only=False)["parts"]["model"] for folder in (halves, trained)]
    assert same(*raw)
    # What was meant is with what came out, and what only the training needs is not.
    kept = torch.load(trained / "weights.pt", weights_only=True)
    assert kept["config"] == json.loads((trained / "config.json").read_text()) == run.configuration(place / "model.toml")
    assert kept.keys() == {"ema", "step", "config"} and kept["step"] == 30
    assert model.load(trained / "weights.pt").synthesis.stem.quantising


def test_an_encoder_is_trained_alone_and_the_bundle_keeps_its_decoder(place, trained, monkeypatch, tmp_path):
    config = configuration("encoder.toml", SMALL | {"model": SMALL["model"] | {"early_depth": 2}}, place / "encoder.toml")
    arguments = dict(config=config, images=place, decoder=trained / "weights.pt", weights=trained / "float.pt")
    moved = tuned(monkeypatch, train, place, "encoder", 30, **arguments)
    old, new = weights(trained / "weights.pt"), weights(place / "encoder" / "weights.pt")
    assert moved & old.keys() and all(name.startswith(train.ENCODER) for name in moved)
    # The new block has begun to add something.
    assert all(name.startswith("analysis.early.1.") for name in new.keys() - old.keys())
    assert new["analysis.early.1.b.weight"].abs().max() > 0 and new["analysis.early.1.out1.scale"] > 0

    before, bundle = packed(monkeypatch, trained, place, tmp_path)
    after = exported(monkeypatch, place / "encoder" / "weights.pt", place, tmp_path / "encoder", bundle=bundle)
    changed = {name for name in before if before[name] != after[name]}
    assert before.keys() == after.keys() and changed == {"analysis.onnx", "hyper_analysis.onnx", "tables.bin"}
    gains = 4 * train.Model(**SMALL["model"]).channels * tables.LEVELS
    assert len(before["tables.bin"]) == len(after["tables.bin"])
    assert sum(a != b for a, b in zip(before["tables.bin"], after["tables.bin"])) <= gains
    # Weights of another decoder do not fit.
    other = torch.load(place / "encoder" / "weights.pt", weights_only=True)
    other["ema"]["log_ungain"] += 0.5
    torch.save(other, place / "other.pt")
    with pytest.raises(SystemExit, match="not of the same decoder"):
        exported(monkeypatch, place / "other.pt", place, tmp_path / "other", bundle=bundle)
    assert not (tmp_path / "other").exists()
    # Nor do those whose pixels are others.
    other = torch.load(place / "encoder" / "weights.pt", weights_only=True)
    other["ema"]["synthesis.head.bias"] += 0.1
    torch.save(other, place / "other.pt")
    with pytest.raises(AssertionError, match="synthesis differs"):
        exported(monkeypatch, place / "other.pt", place, tmp_path / "other", bundle=bundle)


def test_a_correction_learns_where_refinement_leads_and_goes_into_the_bundle(place, trained, monkeypatch, tmp_path):
    shape = dict(width=16, depth=1, depthwise=12, hidden=24, early_depth=1)
    config = configuration("correction.toml", SMALL | {"correction": shape, "optimiser": dict(batch=2), "loss": dict(refinement=2)}, place / "correction.toml")
    tuned(monkeypatch, correction, place, "correction", 60, config=config, checkpoint=trained / "weights.pt", images=place)
    *_, last = map(json.loads, (place / "correction" / "log.jsonl").read_text().splitlines())
    assert last["rounded"] > 0.1 and last["rounded"] > 0.9 * last["unrounded"]
    path = place / "correction" / "weights.pt"
    loaded = model.load_correction(path)
    assert loaded.stem.quantising and loaded.in_down.scale > 0

    before, bundle = packed(monkeypatch, trained, place, tmp_path)
    after = exported(monkeypatch, trained / "weights.pt", place, tmp_path / "corrected", bundle=bundle, correction=path)
    assert after.keys() - before.keys() == {"correction.onnx"}
    assert {name for name in before if before[name] != after[name]} == {"bundle.toml"}
    # Another one takes its place.
    with zipfile.ZipFile(bundle, "w") as archive:
        for name, content in after.items():
            archive.writestr(name, content)
    assert exported(monkeypatch, trained / "weights.pt", place, tmp_path / "again", bundle=bundle, correction=path) == after


def test_a_grown_model_gives_back_more_and_is_what_it_was_where_the_new_channels_are_silent(monkeypatch):
    old = model.load(ROOT / "onnx" / "models" / "sdl-7-float.pt")
    photograph = torch.from_numpy(np.array(Image.open(ROOT / "tests" / "pictures" / "dog.png").convert("RGB")))
    crops = data.Crops([photograph], 128, 4)
    monkeypatch.setattr(grow, "BATCHES", 8)
    new, sizes = grow.grow(old, dict(channels=old.channels, width=256, early_depth=4), 8, lambda: crops.batch(8))
    assert new.channels == sizes["channels"] == old.channels + 8 and sizes["width"] == 264 and sizes["hidden"] == 384
    x = crops.batch(4)
    error = lambda y: (y - x).square().mean().item()
    with torch.no_grad():
        before, after = grow.unrounded(old, x)[1], grow.unrounded(new, x)[1]
        assert torch.allclose(after[:, :-8], before, atol=1e-4)
        assert error(new.synthesis(after)) < 0.98 * error(old.synthesis(before))
        after[:, -8:] = 0
        assert torch.allclose(new.synthesis(after), old.synthesis(before), atol=1e-4)


def test_a_grown_model_is_trained_on(place, trained, monkeypatch):
    monkeypatch.setattr(grow, "BATCHES", 2)
    monkeypatch.setattr(grow, "CROP", 128)
    monkeypatch.setattr(sys, "argv", ["grow.py", f"--weights={trained}/weights.pt", "--channels=4", f"--images={place}", f"--out={place}/grown.pt"])
    grow.main()
    assert not model.load(place / "grown.pt").synthesis.stem.quantising
    sizes = torch.load(place / "grown.pt", weights_only=True)["config"]["model"]
    wider = configuration("train.toml", SMALL | {"model": sizes}, place / "wider.toml")
    command(monkeypatch, train, config=wider, weights=place / "grown.pt", images=place, out=place / "wider", steps=2)
    assert model.load(place / "wider" / "weights.pt").channels == 12


def test_a_configuration_may_be_based_on_another(tmp_path):
    (tmp_path / "a.toml").write_text("seed = 1\n[stages]\nfull = 0.1\ndecay = 0.2\n[model]\nwidth = 3\n")
    (tmp_path / "b.toml").write_text('base = "a.toml"\nseed = 2\n[stages]\nfull = 0.3\n')
    assert run.configuration(tmp_path / "b.toml") == {"seed": 2, "stages": {"full": 0.3, "decay": 0.2}, "model": {"width": 3}}


def test_units_that_no_picture_opens_begin_anew_and_change_nothing_at_first(place):
    torch.manual_seed(3)
    small = model.Model(**SMALL["model"])
    x, level = torch.rand(2, 3, 64, 64), torch.tensor([0.2, 0.9])
    block = small.synthesis.blocks[0]
    with torch.no_grad():
        block.c.bias[:5] = -100
        block.dw.bias[3] = -100
    before = small.eval()(x, level)[0]
    dormant_units = sum((~is_open).sum().item() for _, _, is_open in dormant.open_units(small, x, level))
    assert dormant_units >= 6 and dormant.share_open(small, x, level) < 1
    assert dormant.recycle(small, x, level) == dormant_units
    assert torch.allclose(small(x, level)[0], before, atol=1e-6)
    # What was closed by its bias alone is open now, and learns.
    still = sum((~is_open).sum().item() for _, _, is_open in dormant.open_units(small, x, level))
    assert still < dormant_units
    small(x, level)[0].square().sum().backward()
    assert block.d.weight.grad[:, :5].abs().sum() > 0


def test_only_the_synthesis_is_tuned_and_its_channels_keep_what_they_say(place, trained, monkeypatch):
    torch.manual_seed(11)
    small = model.load(trained / "weights.pt")
    x, level = torch.rand(2, 3, 128, 128), torch.tensor([0.3, 0.8])
    quant.set_quantising(small, False)
    before = small(x, level)[0]
    quant.set_quantising(small, True)
    # Scales that are far too coarse, so that there is something to do.
    for activation in (small.synthesis.in_up, small.synthesis.out_up):
        activation.scale.mul_(4)
    stem, writer = small.synthesis.stem.weight.clone(), small.synthesis.up.weight.clone()
    # Of the channel in the middle: one that hardly ever opens may have what range it likes.
    sizes = lambda: {name: layer.weight.flatten(1).norm(dim=1).median().item() for name, layer in small.synthesis.named_modules() if isinstance(layer, quant.Conv)}
    size = sizes()
    assert quant.level_channels([small], x, level) > 0
    # Ranges move against each other, and not all of them one way.
    for _ in range(3):
        quant.level_channels([small], x, level)
    assert all(size[name] / 2 < now < 2 * size[name] for name, now in sizes().items())
    assert not torch.equal(stem, small.synthesis.stem.weight) and not torch.equal(writer, small.synthesis.up.weight)
    quant.set_quantising(small, False)
    assert torch.allclose(small(x, level)[0], before, atol=1e-5)

    changes = SMALL | {"data": dict(SMALL["data"], crops=6, held_out=2, look=1), "loss": dict(refinement=2)}
    tuning = configuration("synthesis.toml", changes, place / "synthesis.toml")
    moved = tuned(monkeypatch, synthesis, place, "tuned", 4, config=tuning, checkpoint=trained / "weights.pt", images=place)
    assert any(name.endswith(".weight") for name in moved)
    # Scales move with ranges, by powers of two.
    assert all(name.startswith("synthesis.") and not name.endswith(".seen") for name in moved)
    old, new = (weights(place / folder / "weights.pt") for folder in ("whole", "tuned"))
    steps = [torch.log2(new[name] / old[name]).item() for name in moved if name.endswith(".scale")]
    assert all(step == round(step) for step in steps)
    # What is kept is what was best for latents that nothing was trained on.
    log = [json.loads(row) for row in (place / "tuned" / "log.jsonl").read_text().splitlines()]
    held_out = {row["step"]: row["held_out_loss"] for row in log if "held_out_loss" in row}
    assert len(held_out) == 5
    kept = torch.load(place / "tuned" / "float.pt", weights_only=True)
    assert held_out[kept["step"]] == min(held_out.values())


def test_a_channel_and_its_copy_have_steps_half_the_size(trained):
    torch.manual_seed(12)
    small = model.load(trained / "weights.pt")
    x, level = torch.rand(4, 3, 128, 128), torch.linspace(0, 1, 4)
    latent = small.code(small.analysis(x), level)[0]
    s = copy.deepcopy(small.synthesis)
    quant.set_quantising(s, False)
    exact = s.levels(latent)
    for activation in (s.out_up, s.act_dw, s.act_c):  # so that nothing is clipped
        activation.scale.copy_(quant.entering(activation, s, latent).abs().max() / (60 if activation.signed else 250))
    with torch.no_grad():
        s.dw.bias += 0.3 * s.act_dw.scale * 127  # not in the middle any more, as of a picture that is always bright
        s.c.bias -= s.c.weight.flatten(1) @ torch.full((48,), 0.3 * s.act_dw.scale * 127)
    renderer.centre(s, latent)
    assert torch.allclose(s.levels(latent), exact, atol=1e-2)
    ends = quant.entering(s.act_dw, s, latent).transpose(0, 1).flatten(1).quantile(torch.tensor([renderer.ENDS, 1 - renderer.ENDS]), dim=1)
    assert torch.allclose(ends[0], -ends[1], atol=1e-3)

    # Of all channels: what is rounded in the renderer alone.
    every = renderer.with_copies(s, list(range(48)), list(range(96)))
    assert every.dw.in_channels == 96 and every.head.in_channels == 192 and every.c.wide is None
    # The same but where a hidden unit is within a quarter of a step of its threshold.
    assert (every.levels(latent) - exact).abs().quantile(0.5) < 1e-3
    for name in ("out_up", "act_dw", "act_c"):
        errors = []
        for synthesis in (s, every):
            getattr(synthesis, name).quantising = True
            errors.append((synthesis.levels(latent) - exact).square().mean().item())
            getattr(synthesis, name).quantising = False
        assert 0 < errors[1] < 0.35 * errors[0]


def test_what_rounding_takes_from_weights_their_copies_give_back():
    torch.manual_seed(13)
    for groups in (1, 6):
        conv = quant.Conv(6, 6, 3 if groups > 1 else 1, groups=groups).requires_grad_(False)
        conv.weight[3:], conv.bias[3:] = 2 * conv.weight[:3], 2 * conv.bias[:3]
        x = torch.rand(4, 3, 16, 16).repeat(1, 2, 1, 1)
        errors = []
        for copies in ([], [(0, 3), (1, 4), (2, 5)]):
            rounded = copy.deepcopy(conv)
            rounded.copies = copies
            gptq.compensate_part(torch.nn.Sequential(rounded), [x], [torch.ones(4)])
            y = rounded(x)
            errors.append((2 * y[:, :3] + y[:, 3:] - 2 * conv(x)[:, 3:]).square().mean().item())
        assert 0 < errors[1] < 0.5 * errors[0]


def test_a_generation_gets_a_finer_renderer_and_stays_otherwise_as_it_is(place, trained, monkeypatch):
    whole, finer, rounded = trained / "weights.pt", place / "finer.pt", place / "finer-rounded.pt"
    called(monkeypatch, renderer, checkpoint=whole, unrounded=whole, images=place, out=finer, late=3, hidden=5)
    called(monkeypatch, gptq, "--synthesis", checkpoint=finer, images=place, out=rounded)
    old, new = weights(whole), weights(rounded)
    assert all(torch.equal(old[name], new[name]) for name in old if not name.startswith("synthesis."))
    changed = model.load(rounded)
    assert changed.synthesis.dw.in_channels == 51 and changed.synthesis.head.in_channels == 101
    # The decoder as it was still belongs to it, for natural.py may have made another of it.
    torch.save({"ema": {name.removeprefix("synthesis."): w for name, w in old.items() if name.startswith("synthesis.")}, "config": {"model": model.load(whole).shape}}, place / "of-before.pt")
    assert export.load_natural(place / "of-before.pt", changed).dw.in_channels == 48
    graph = export.synthesis(changed, changed.synthesis).SerializeToString()
    latent = torch.randint(-400, 400, (1, 8, 6, 5)).float().numpy()
    assert torch.equal(*export.decoded(onnxruntime.InferenceSession(graph), changed.synthesis, latent))
    # What is trained further stays of its shape.
    few = configuration("synthesis.toml", SMALL | {"data": dict(SMALL["data"], crops=3, held_out=1, look=1), "loss": dict(refinement=1)}, place / "few.toml")
    command(monkeypatch, synthesis, config=few, checkpoint=finer, images=place, out=place / "finer-trained", steps=2)
    assert model.load(place / "finer-trained" / "weights.pt").shape == model.load(finer).shape
    with pytest.raises(SystemExit, match="has copies"):
        called(monkeypatch, renderer, checkpoint=finer, images=place, out=place / "twice.pt")


def test_refined_latents_are_decoded_to_something_nearer(monkeypatch):
    # With the same regard for bits, so that only the way they went counts.
    monkeypatch.setattr(refine, "REFINED", 1.0)
    whole = model.load(ROOT / "onnx" / "models" / "sdl-7.pt")
    photograph = torch.from_numpy(np.array(Image.open(ROOT / "tests" / "pictures" / "dog.png").convert("RGB")))
    x, level, c = data.Crops([photograph], 192, 4).batch(2), torch.tensor([0.4, 0.8]), run.configuration(ROOT / "onnx" / "train" / "synthesis.toml")["loss"]
    plain, better = (refine.Refiner(whole, whole.synthesis, c)(x, level, steps).latent for steps in (0, 4))
    with torch.no_grad():
        before, after = (train.distortion_of(whole.synthesis(latent), x, c)[0] for latent in (plain, better))
    assert (after < 0.94 * before).all()
    assert not better.requires_grad


def test_only_what_the_hyper_latent_says_is_tuned_and_it_saves_bits(place, trained, monkeypatch):
    tuning = configuration("entropy.toml", SMALL | {"data": dict(SMALL["data"], crops=8), "optimiser": dict(batch=2)}, place / "entropy.toml")
    moved = tuned(monkeypatch, entropy, place, "entropy", 60, config=tuning, checkpoint=trained / "weights.pt", images=place)
    assert {"context_channel", "context_mean", "hyper_context_mean", "hyper_context_scale", "hyper_analysis.d.weight", "hyper_synthesis.b.weight"} <= moved
    assert not any(name.startswith(("analysis", "synthesis", "log_")) or name.endswith((".scale", ".seen")) for name in moved)
    x, level = torch.rand(2, 3, 192, 192), torch.tensor([0.5, 0.9])
    bits = lambda folder: sum(t.sum().item() for t in model.load(place / folder / "weights.pt")(x, level)[1:])
    assert bits("entropy") < bits("whole")


def test_a_symbol_is_the_nearest_one_or_next_to_it_where_that_saves_more_bits_than_it_loses():
    value, log_scale = torch.tensor([0.2, 0.52, -0.52, 0.95, 1.55, -7.6]), torch.tensor(-0.5)
    assert model.rounded(value, log_scale, 0).tolist() == [0, 1, -1, 1, 2, -8]
    assert model.rounded(value, log_scale, 0.06).tolist() == [0, 0, 0, 1, 1, -8], "none costs more than 30 bits here"
    # Where all symbols cost about the same the nearest one remains.
    assert model.rounded(value, torch.tensor(4.0), 0.06).tolist() == [0, 1, -1, 1, 2, -8]


def test_the_integers_may_be_those_that_an_encoder_takes(trained):
    small = model.load(trained / "weights.pt")
    small.log_gain.add_(2.5)
    small.scale_bias.add_(1.0)
    integers, bits = tables.Integers(small), tables.gaussian_bits()
    y, z, mean = tables.analyse(small, integers, torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(8)), 60)
    nearest, weighed = (integers.code(y, z, mean, 60, given)[0] for given in (None, bits))
    assert 0 < np.abs(weighed).sum() < np.abs(nearest).sum() and np.abs(weighed - nearest).max() == 1


def test_weights_that_make_up_for_each_other_lose_less_than_those_rounded_alone():
    whole = model.load(ROOT / "onnx" / "models" / "sdl-7-float.pt")
    photograph = torch.from_numpy(np.array(Image.open(ROOT / "tests" / "pictures" / "dog.png").convert("RGB")))
    crops = data.Crops([photograph], 128, 4)
    x, level = crops.batch(8), torch.linspace(0, 1, 8)
    with torch.no_grad():
        quant.set_watching(whole, True)
        whole(x, level)
        quant.set_watching(whole, False)
        quant.freeze(whole)
        # As it is trained: activations are rounded, and weights are not.
        quant.set_quantising(whole, True, weights=False)
        y = whole.analysis(x)
        latent = whole.code(y, level)[0]
        wanted = whole.synthesis(latent)
        quant.set_quantising(whole, True)
        lost = lambda: ((whole.analysis(x) - y).square().mean().item(), (whole.synthesis(latent) - wanted).square().mean().item())
        alone = lost()
    gptq.compensate(whole, [crops.batch(8) for _ in range(6)], 0.35)
    together = lost()
    assert together[0] < 0.8 * alone[0] and together[1] < 0.8 * alone[1]
    # They are integers of their scales now, no more than fit.
    for conv in quant.convolutions(whole):
        integers = conv.weight / conv.weight_scale().view(-1, 1, 1, 1)
        assert torch.equal(integers, integers.round()) and (conv.wide or integers.abs().max() <= quant.WEIGHT_MAX)


def test_a_checkpoint_is_rounded_by_itself(place, trained, monkeypatch):
    # Weights that are not integers of their scales, as training has them.
    checkpoint = torch.load(trained / "weights.pt", weights_only=False)
    random = torch.Generator().manual_seed(2)
    loose = {name: w.float() * (1 + 0.01 * torch.randn(w.shape, generator=random)) if name.endswith(".weight") else w for name, w in checkpoint["ema"].items()}
    torch.save(checkpoint | {"ema": loose}, place / "loose.pt")
    called(monkeypatch, gptq, checkpoint=place / "loose.pt", images=place, out=place / "rounded.pt")
    found = model.load(place / "rounded.pt")
    for conv in (m for part in (found.analysis, found.hyper_synthesis, found.synthesis) for m in quant.convolutions(part)):
        integers = conv.weight / conv.weight_scale().view(-1, 1, 1, 1)
        # Wide ones lose their last bits to fp16, in which checkpoints are kept.
        assert conv.wide or torch.equal(integers, integers.round())


def test_a_weight_that_only_moves_the_bias_costs_the_others_nothing():
    random = torch.Generator().manual_seed(5)
    conv = quant.Conv(24, 6)
    x = torch.rand(4, 24, 16, 16, generator=random)
    x[:, 3] = 0.5
    with torch.no_grad():
        conv.weight.copy_(0.1 * torch.randn(conv.weight.shape, generator=random))
        conv.weight[:, 3] = 7.0
        wanted = conv(x)
        parts = torch.nn.Sequential(conv)
        gptq.compensate_part(parts, [x], [torch.ones(4)])
        error = (parts(x) - wanted).abs().max()
    # To a scale that holds 7 the others would be off by 1/16 each.
    assert conv.weight_scale().max() <= 2**-7 and error < 0.02


def test_a_latent_that_is_spread_is_decoded_to_the_same_and_rounded_less():
    whole = model.load(ROOT / "onnx" / "models" / "sdl-7-float.pt")
    photograph = torch.from_numpy(np.array(Image.open(ROOT / "tests" / "pictures" / "dog.png").convert("RGB")))
    x, level = data.Crops([photograph], 192, 4).batch(4), torch.linspace(0.4, 1, 4)

    def decoded(quantising):
        whole.synthesis.stem.quantising = quantising
        return whole(x, level)[0]

    with torch.no_grad():
        exact, rounded = decoded(False), decoded(True)
        model.spread_latent([whole], x, level)
        spread, rounded_now = decoded(False), decoded(True)
    assert torch.allclose(spread, exact, atol=1e-4)
    assert (rounded_now - spread).square().mean() < 0.2 * (rounded - exact).square().mean()
    assert torch.exp(whole.log_ungain).max() < 8  # 16 bits in the tables


def test_the_integers_are_those_of_the_model_with_its_contexts_rounded(trained):
    small = model.load(trained / "weights.pt")
    random = torch.Generator().manual_seed(8)
    small.context_channel.copy_(0.1 * torch.randn(8, 8, generator=random))
    small.context_scale.copy_(0.3 * torch.randn(8, generator=random))
    # What rounding a weight loses can turn a mean by 1/16, and with it a symbol.
    unit = model.MEAN_UNIT / 256
    small.context_mean.copy_(unit * torch.round(small.context_mean / unit))
    # So that there are symbols that are not 0, and none that is 0 for its scale.
    small.log_gain.add_(2.5)
    small.scale_bias.add_(2.5)
    integers = tables.Integers(small)
    x = torch.rand(1, 3, 128, 128, generator=random)
    y, z, mean = tables.analyse(small, integers, x, 60)
    symbols, index, values = integers.code(y, z, mean, 60)
    scaled, hyper = torch.from_numpy(y)[None].float(), torch.from_numpy(z)[None].float() * model.HYPER_UNIT
    means, log_scale, expected = small.quantise(scaled, hyper, torch.tensor([0.6]))
    exact = ((log_scale - np.log(model.SCALE_MIN)) / model.SCALE_STEP)[0].numpy()
    assert 100 < np.abs(symbols).sum() and np.abs(symbols).max() < 32 and index.min() > 0
    assert np.abs(index - exact.clip(0, 63)).max() < 0.8, "half a step, and what weights and magnitudes lose"
    assert np.array_equal(symbols, expected[0].numpy())
    assert np.abs((values - 16 * symbols) / 16 - means[0].numpy()).max() < 0.1


def test_the_hyper_latent_is_coded_about_what_the_model_expects(trained, monkeypatch):
    small = model.load(trained / "weights.pt")
    random = torch.Generator().manual_seed(9)
    noise = lambda *shape: 0.2 * torch.randn(*shape, generator=random)
    small.hyper_context_mean.copy_(noise(4, 12))
    small.hyper_context_scale.copy_(noise(4, 12))
    small.hyper_mean.copy_(noise(3, 4))
    integers = tables.Integers(small)
    z = 4 * torch.randn(4, 5, 6, generator=random)
    coded, symbols, index = integers.code_hyper(z.double().numpy(), 60)
    assert 20 < np.abs(symbols).sum() and index.min() > 0
    assert np.abs(coded * model.HYPER_UNIT - z.numpy()).max() <= 0.5, "every value is rounded to the nearest one about its mean"
    mean, log_scale = small.hyper_prior(torch.from_numpy(coded)[None].float() * model.HYPER_UNIT, torch.tensor([0.6]))
    exact = ((log_scale - np.log(model.SCALE_MIN)) / model.SCALE_STEP)[0].numpy()
    assert np.abs(index - exact.clip(0, 63)).max() < 1.2, "half a step, and what weights and magnitudes lose"
    assert np.abs((coded - 4 * symbols) * model.HYPER_UNIT - mean[0].numpy()).max() < 0.3, "a unit, and what weights lose"
    # A few rounds over all values come to nearly the same as going from one to the next.
    monkeypatch.setattr(small.hyper_analysis, "forward", lambda y: z[None])
    _, rounds = small.hyper_latent(None, torch.tensor([0.6]))
    assert (rounds[0].numpy() - coded * model.HYPER_UNIT).std() < 0.35


def test_another_seed_gives_other_weights(place, trained, monkeypatch):
    text = (place / "model.toml").read_text()
    assert "seed = 1\n" in text
    (place / "other.toml").write_text(text.replace("seed = 1\n", "seed = 2\n"))
    arguments = dict(images=place, steps=30, stop=3)
    command(monkeypatch, train, config=place / "other.toml", out=place / "two", **arguments)
    command(monkeypatch, train, config=place / "model.toml", out=place / "one", **arguments)
    assert not same(weights(place / "one" / "weights.pt"), weights(place / "two" / "weights.pt"))
    with pytest.raises(SystemExit, match="another configuration"):
        command(monkeypatch, train, config=place / "model.toml", out=place / "two", **arguments)


def test_an_interrupted_natural_training_gives_the_weights_of_one_in_one_go(place, trained, monkeypatch):
    arguments = dict(config=place / "natural.toml", checkpoint=trained / "weights.pt", images=place, features=place / "features.onnx", steps=10)
    for out, stops in (("natural-whole", [None]), ("natural-halves", [5, None])):
        for stop in stops:
            command(monkeypatch, natural, **arguments, out=place / out, **({"stop": stop} if stop else {}))
    whole, halves = (torch.load(place / out / "state.pt", weights_only=False) for out in ("natural-whole", "natural-halves"))
    for part in ("natural", "ema", "judge"):
        assert same(whole["parts"][part], halves["parts"][part]), part
    assert same(weights(place / "natural-whole" / "natural.pt"), weights(place / "natural-halves" / "natural.pt"))
    # Only the weights of the synthesis move; the scales of its activations, which are part of the exact form, stay.
    before = {name[len("synthesis.") :]: v for name, v in weights(trained / "weights.pt").items() if name.startswith("synthesis.")}
    after = weights(place / "natural-whole" / "natural.pt")
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved and not any(name.endswith(("scale", "seen")) for name in moved)
    loaded = model.load(trained / "weights.pt")
    decoder = export.load_natural(place / "natural-whole" / "natural.pt", loaded)
    assert decoder.stem.quantising
    # Its weights are rounded when all else is done; the best ones before that are kept as they were.
    narrow = [(name, conv) for name, conv in decoder.named_modules() if isinstance(conv, quant.Conv) and conv.wide is None]
    unrounded = weights(place / "natural-whole" / "float.pt")
    for name, conv in narrow:
        scale = conv.weight_scale().view(-1, 1, 1, 1)
        is_whole = lambda w: torch.equal(w, torch.round(w / scale) * scale)
        assert is_whole(conv.weight) and not is_whole(unrounded[f"{name}.weight"].float()), name


def test_what_an_earlier_decoder_learnt_is_carried_over_channels_of_other_ranges(trained):
    before = model.load(trained / "weights.pt")
    quant.set_quantising(before, False)
    wanted, unlearnt, tuned = (copy.deepcopy(before) for _ in range(3))
    # What is learnt differs from weight to weight; ranges are those of whole channels.
    for learnt in (wanted.synthesis, tuned.synthesis):
        torch.manual_seed(4)
        for layer in quant.convolutions(learnt):
            layer.weight.mul_(1 + 0.2 * torch.randn_like(layer.weight))
            layer.bias.add_(0.1 * layer.bias.abs().mean() * torch.randn_like(layer.bias))
    for site in zip(*(quant.sites(m, ["synthesis"]) for m in (wanted, unlearnt))):
        channels = site[0][2][0].in_channels
        factor = 2 ** (torch.randint(-2, 3, (channels,)) / 2)
        for writers, _, readers in site:
            quant.rescale(writers, readers, factor)
    latent = 4 * torch.randn(2, before.channels, 6, 6)
    at = lambda decoder: decoder.synthesis(latent)
    assert torch.allclose(at(unlearnt), at(before), atol=1e-4) and torch.allclose(at(wanted), at(tuned), atol=1e-4)
    apart = (at(tuned) - at(before)).square().mean()
    carry.carry(unlearnt.synthesis, before.synthesis, tuned.synthesis)
    # Units are estimates.
    assert (at(unlearnt) - at(wanted)).square().mean() < 1e-2 * apart


def test_the_feature_distance_is_that_of_the_bench(shared):
    path = str(shared / "models" / "perceptual" / "squeezenet11_distance.onnx")
    random = torch.Generator().manual_seed(1)
    a = torch.rand(2, 3, 67, 82, generator=random)
    b = (a + 0.1 * torch.randn(a.shape, generator=random)).clamp(0, 1)
    found = features.FeatureDistance(path)(a, b).numpy()
    assert np.allclose(found, onnxruntime.InferenceSession(path).run(None, {"a": a.numpy(), "b": b.numpy()})[0], atol=1e-4)


def test_text_is_found_and_a_photograph_is_not():
    """Letters, as runs of dark strokes on light ground."""
    page = np.full((128, 128, 3), 240, np.uint8)
    for y in range(8, 120, 14):
        for x in range(6, 118, 5):
            page[y : y + 8, x : x + 2] = 20
    assert natural.strokes(torch.from_numpy(page)).float().mean() > 0.8
    photograph = np.array(Image.open(ROOT / "tests" / "pictures" / "dog.png").convert("RGB"))
    assert natural.strokes(torch.from_numpy(photograph)).float().mean() < 0.05
