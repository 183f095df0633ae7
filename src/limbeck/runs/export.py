"""Hand a run's student on: safetensors, ONNX or torch.export, each compared with the PyTorch student it came from."""

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.assembly.build import CARD, load_student
from limbeck.assembly.tasks import BuildModel, Program, kind_of
from limbeck.distiller import evaluating
from limbeck.distributed import sharding
from limbeck.errors import UserError
from limbeck.models import Model
from limbeck.storage.files import load_weights, replacing, save_weights
from limbeck.storage.untrusted import read_object

Format = Literal["safetensors", "onnx", "torch-export"]
ENDINGS = {"safetensors": ".safetensors", "onnx": ".onnx", "torch-export": ".pt2"}
_BATCH = 8
Outputs = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Exported:
    """A written file.

    Attributes:
        path: The file.
        parity: Largest absolute difference between its outputs and the PyTorch student's, float32, over random images
            in batches of eight and of three; 0.0 means the same bytes.
        note: What a user of the file has to know.
    """

    path: Path
    parity: float
    note: str


def export(run: Path, *, format: Format, out: Path | None = None, backbone: bool = False) -> Exported:
    """Write the student of a run in one of three formats and measure how far it is from the original.

    The input of the exported model is what ``student.json`` says: images ``(n, 3, size, size)``, normalized. The batch
    size stays free. Programs of detectors have two outputs, the box ``(n, places, 4)`` and the scores
    ``(n, places, k)`` of every place, in front of non-maximum suppression.

    Args:
        run: A finished run folder.
        format: "safetensors" (weights for the plain model), "onnx" or "torch-export" (a program).
        out: The file to write; by default ``student`` (or ``backbone``) with the format's ending in the run folder's
            ``export/``.
        backbone: Cut the classifier off: the output is the penultimate feature ``(n, d)``.

    Raises:
        UserError: If the folder is no finished run, the file is there already or has another ending, the format's
            package is missing, or a program is asked for of a detector of two stages or of queries.
    """
    task = str(read_object(run / CARD, "model").get("task")) if (run / CARD).is_file() else ""
    kind = kind_of(task)
    if backbone and kind is not kind_of("classification"):
        raise UserError(f"--backbone: {run} holds a student of {task}; expected one of classification")
    student = load_student(run, headless=backbone)
    name = "backbone" if backbone else "student"
    path = out if out is not None else run / "export" / f"{name}{ENDINGS[format]}"
    if path.suffix != ENDINGS[format]:
        raise UserError(f"{path} should end in {ENDINGS[format]}, the ending of {format} files")
    if path.exists():
        raise UserError(f"{path} is there already; choose another --out")
    size = student.input.size
    program = Program(student.module) if format == "safetensors" else kind.program(student, format)
    module = program.module
    batches = [torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(n)) for n in (_BATCH, 3)]
    with evaluating(module):
        match format:
            case "safetensors":
                again = _write_safetensors(student, path, kind.build_model)
            case "onnx":
                again = _write_onnx(program, path, batches[0])
            case "torch-export":
                again = _write_program(module, path, batches[0])
        parity = max(_difference(again(batch), module(batch)) for batch in batches)
    mean, std = ([round(v, 4) for v in values] for values in (student.input.mean, student.input.std))
    note = f"input n x 3 x {size} x {size}, RGB in [0, 1] less {mean}, divided by {std}"
    return Exported(path, parity, note + program.note)


def _difference(ours: Outputs, theirs: Outputs) -> float:
    """The largest absolute one, over all outputs."""
    a, b = ((one,) if isinstance(one, Tensor) else one for one in (ours, theirs))
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


def _write_safetensors(student: Model, path: Path, build: BuildModel) -> Callable[[Tensor], Outputs]:
    save_weights(student.module.state_dict(), path)
    fresh = build(student.name, num_classes=student.num_classes, size=student.input.size)
    sharding.load(fresh.module, load_weights(path))
    return fresh.module.eval()


def _write_onnx(written: Program, path: Path, example: Tensor) -> Callable[[Tensor], Outputs]:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f'ONNX needs the package {package}: pip install "limbeck[export]"')
    import onnxruntime

    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        batch = torch.export.Dim("batch", min=1)
        program = torch.onnx.export(
            written.module,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=list(written.outputs),
            dynamic_shapes=({0: batch},),
        )
        assert program is not None
        program.save(str(temporary))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def again(images: Tensor) -> Outputs:
        found = [torch.from_numpy(value) for value in session.run(None, {"images": images.numpy()})]
        return found[0] if len(found) == 1 else tuple(found)

    return again


def _write_program(module: nn.Module, path: Path, example: Tensor) -> Callable[[Tensor], Outputs]:
    program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    with replacing(path) as temporary:
        # torch.export insists on its own ending
        written = temporary.with_suffix(".pt2")
        torch.export.save(program, written)
        written.replace(temporary)
    return torch.export.load(path).module()
