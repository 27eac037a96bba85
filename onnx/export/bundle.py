"""What the exporters share: graphs out of PyTorch modules, their check, and the folder that `sdl model import` takes.

A bundle is written as `OUT.partial` and renamed when everything in it has been checked, so `OUT` is never half a bundle. The same weights always
become the same bytes: graphs carry no paths, dates or stack traces. docs/bundles.md has the manifest.
"""

import argparse
import contextlib
import hashlib
import logging
import pathlib
import re
import shutil
import sys
import tomllib
import warnings

import numpy as np
import onnx_ir
import onnxruntime
import tomli_w
import torch
from blake3 import blake3

# A graph whose output differs from PyTorch's by more, anywhere, is not written.
TOLERANCE = 1e-3
# protobuf ends at 2 GiB; what is larger keeps its weights in a file beside the graph.
LARGEST_GRAPH = 2_000_000_000
# Fewer values than this (biases, norms) stay float32 with --fp16: nothing is saved on them.
LEAST_HALVED = 1024
OPSET = 20
# Latent positions (height, width) to export with, and to check with: not square, odd, and other than the first.
EXPORTED, CHECKED = (8, 10), ((8, 10), (13, 6))
SOURCE_MISSING = "--source is missing: whoever gets the bundle wants to know where its weights come from"
# As `sdl model import` takes them (onnx/src/manifest.rs).
NAME, VERSION = re.compile(r"(?!\.)[a-z0-9._-]{1,64}"), re.compile(r"(?!\.)[A-Za-z0-9._-]{1,64}")


class Refused(Exception):
    """Why there is no bundle."""


@contextlib.contextmanager
def reading(what):
    """Whatever a checkpoint that is missing or garbled brings about is `Refused`: every library has exceptions of its own for it."""
    try:
        yield
    except (Refused, OSError):
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise Refused(f"{what} cannot be read: {type(error).__name__}: {reason}") from None


def required(folder, *names):
    """Refuses a folder that lacks one of some files."""
    for name in names:
        if not (pathlib.Path(folder) / name).exists():
            raise Refused(f"{folder} has no {name}")


class Bundle:
    """A bundle being written: `graph` for each role, then `finish`. As a context manager it leaves nothing behind when something fails."""

    def __init__(self, out):
        self.out = pathlib.Path(out)
        if self.out.exists():
            raise Refused(f"{self.out} is there already")
        self.folder = self.out.with_name(self.out.name + ".partial")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.graphs = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.folder, ignore_errors=True)

    def graph(self, role, module, inputs, outputs, half=False):
        """Exports `module` and compares the graph with it.

        `inputs`: name -> function of (h, w), counted in latent positions, that gives a random tensor; axes 2 and 3 of four-dimensional ones stay
        dynamic, in steps of what one position takes. `outputs`: names. `half`: weights are stored as float16 and cast to float32 when they are used.
        """
        module = module.float().eval().requires_grad_(False)
        if half:
            for tensor in module.state_dict().values():
                if tensor.dtype == torch.float32 and tensor.numel() >= LEAST_HALVED:
                    tensor.copy_(tensor.half())
        model = _export(module, inputs, outputs)
        if half:
            _halve(model)
        self.model(role, model, inputs, outputs, module)

    def model(self, role, model, inputs, outputs, reference):
        """Saves an ONNX model (of onnx_ir) and compares it with `reference`, a function of the inputs in their order."""
        name = role + ".onnx"
        entry = {"file": name, "inputs": list(inputs), "outputs": list(outputs)}
        size = sum(value.const_value.nbytes for value in model.graph.initializers.values())
        if size > LARGEST_GRAPH:
            entry["external"] = [name + ".data"]
        save(model, self.folder / name, *entry.get("external", []))
        self._check(self.folder / name, inputs, outputs, reference)
        self.graphs[role] = entry

    def _check(self, path, inputs, outputs, reference):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        torch.manual_seed(1)
        for height, width in CHECKED:
            given = {name: make(height, width) for name, make in inputs.items()}
            with torch.no_grad():
                wanted = reference(*given.values())
            wanted = wanted if isinstance(wanted, tuple) else (wanted,)
            found = session.run(list(outputs), {name: tensor.numpy() for name, tensor in given.items()})
            for output, a, b in zip(outputs, wanted, found, strict=True):
                if a.shape != b.shape:
                    raise Refused(f"{path.name}: `{output}` is {b.shape}, and {tuple(a.shape)} in PyTorch")
                difference = np.abs(a.numpy() - b).max()
                # Written so that a NaN is refused too.
                if not difference <= TOLERANCE:
                    raise Refused(f"{path.name}: `{output}` differs from PyTorch's by {difference:.2g}; {TOLERANCE:g} is allowed")
                print(f"{path.name}: `{output}` {tuple(b.shape)} within {difference:.1e} of PyTorch's", flush=True)

    def add(self, name, source):
        """A file as it is: a licence."""
        shutil.copyfile(source, self.folder / name)

    def denoiser(self, folder):
        """Adds the trained denoiser of `onnx/train/denoiser.py`; returns what its denoiser.toml says, for the manifest."""
        folder = pathlib.Path(folder)
        required(folder, "denoiser.onnx", "denoiser.toml")
        with reading(folder / "denoiser.toml"):
            said = tomllib.loads((folder / "denoiser.toml").read_text())
            graphs = said.pop("graphs")
        self.add("denoiser.onnx", folder / "denoiser.onnx")
        self.graphs |= graphs
        return said

    def finish(self, manifest, name="bundle.toml"):
        """Adds graphs and BLAKE3 sums to the manifest, and gives the folder its name."""
        files = sorted(self.folder.iterdir())
        manifest = manifest | {"graphs": self.graphs, "sums": {file.name: _blake3(file) for file in files}}
        (self.folder / name).write_bytes(tomli_w.dumps(manifest).encode())
        self.folder.rename(self.out)


def _export(module, inputs, outputs):
    """A model of onnx_ir, height and width dynamic."""
    torch.manual_seed(0)
    given = {name: make(*EXPORTED) for name, make in inputs.items()}
    sides = (torch.export.Dim("h"), torch.export.Dim("w"))

    def dynamic(tensor):
        if tensor.dim() != 4:
            return None
        steps = [size // side for size, side in zip(tensor.shape[2:], EXPORTED)]
        return {2 + axis: step * side if step > 1 else side for axis, (step, side) in enumerate(zip(steps, sides))}

    # The exporter reports what it does step by step; what matters is checked afterwards.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, tuple(given.values()), input_names=list(given), output_names=list(outputs), opset_version=OPSET, dynamo=True, verbose=False,
            dynamic_shapes=tuple(dynamic(tensor) for tensor in given.values()))  # fmt: skip
    return anonymous(program.model)


def anonymous(model):
    """Takes out of a model where and how it was made."""
    model.metadata_props.clear()
    model.doc_string = None
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    return model


def _halve(model):
    """Large float32 weights become float16 with a cast behind them: half the file, the same arithmetic."""
    graph, first = model.graph, model.graph[0]
    for name, value in list(graph.initializers.items()):
        if value.dtype != onnx_ir.DataType.FLOAT or value.const_value.size < LEAST_HALVED:
            continue
        stored = onnx_ir.Value(name=name + ".half", shape=value.shape, type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT16),
                               const_value=onnx_ir.tensor(value.const_value.numpy().astype(np.float16), name=name + ".half"))  # fmt: skip
        cast = onnx_ir.node("Cast", [stored], {"to": onnx_ir.DataType.FLOAT})
        cast.outputs[0].name = name + ".single"
        cast.outputs[0].shape, cast.outputs[0].type = value.shape, value.type
        value.replace_all_uses_with(cast.outputs[0])
        graph.initializers.pop(name)
        graph.initializers[stored.name] = stored
        graph.insert_before(first, cast)


def save(model, path, external=None):
    onnx_ir.save(model, path, external_data=external)


def _blake3(path):
    with open(path, "rb") as file:
        hasher = blake3()
        while block := file.read(1 << 20):
            hasher.update(block)
    return hasher.hexdigest()


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def arguments(description, licence):
    """The arguments that all exporters have; `licence` is for the help."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="see above")
    parser.add_argument("out", type=pathlib.Path, help="folder to write; its name is the bundle's unless --name says otherwise")
    parser.add_argument("--licence", required=True, help=f"licence of the weights, e.g. {licence}")
    parser.add_argument("--source", help="where the weights come from; needed where CHECKPOINT is a path")
    parser.add_argument("--revision", help="revision of that source: a commit or a tag")
    parser.add_argument("--name", help="a-z, 0-9, '.', '_', '-'")
    parser.add_argument("--version", default="1")
    parser.add_argument("--fp16", action="store_true", help="store weights as float16; they are run in float32")
    return parser


def checked(args):
    """The arguments, if the bundle can be imported under the name and version they give, and says where its weights come from."""
    name = args.name or args.out.name
    if not NAME.fullmatch(name):
        raise Refused(f"the name is {name!r}, and must be 1 to 64 of a-z, 0-9, '.', '_', '-', and not start with '.'; --name gives it another one")
    if not VERSION.fullmatch(args.version):
        raise Refused(f"--version is {args.version!r}, and must be 1 to 64 letters, digits, '.', '_', '-', and not start with '.'")
    for option in ("licence", "source", "revision"):
        if re.search(r"[\x00-\x1f\x7f-\x9f]", getattr(args, option) or ""):
            raise Refused(f"--{option} must not have control characters")
    if args.out.exists():
        raise Refused(f"{args.out} is there already")
    if pathlib.Path(args.checkpoint).exists() and not args.source:
        raise Refused(SOURCE_MISSING)
    return args


def provenance(args, files, source=None, revision=None, folder=None):
    """The head of the manifest. `files`: those that the weights were read from, named relative to `folder`."""
    source, revision = args.source or source, args.revision or revision
    if not source:
        raise Refused(SOURCE_MISSING)
    head = {"format": 1, "name": args.name or args.out.name, "version": args.version, "licence": args.licence, "source": source}
    if revision:
        head["revision"] = revision
    made = {"program": pathlib.Path(sys.argv[0]).name, "torch": torch.__version__.split("+")[0]}
    return head | {"export": made | {"sha256": {str(file.relative_to(folder) if folder else file.name): sha256(file) for file in sorted(files)}}}


def run(main):
    """Ends with status 1 and one line where the input is to blame."""
    try:
        main()
    except (Refused, OSError) as error:
        raise SystemExit(f"{pathlib.Path(sys.argv[0]).name}: {error}") from None
