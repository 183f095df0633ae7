"""Records of a run as they stand in its log, with figures that a test knows."""

import errno
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

Record = dict[str, Any]


def start(recipe: str = "planted", images: int = 100) -> Record:
    return {"kind": "start", "recipe": recipe, "images": images, "counts": {}, "versions": {}, "device": "cpu"}


def step(number: int, *, epoch: int = 1, loss: float = 1.5) -> Record:
    parts, readings = {"task": 1.0, "feature": -3.25}, {"feature/correlation": 0.5}
    return {
        "kind": "step",
        "step": number,
        "epoch": epoch,
        "loss": loss,
        "parts": parts,
        "readings": readings,
        "lr": 0.05,
        "images_per_second": 1234.5,
    }


def epoch(number: int, at: int, *, top1: float = 0.25, seconds: float = 3.0) -> Record:
    train = {"loss": 2.0, "images_per_second": 100.0}
    val = {"top1": top1, "loss": 1.0}
    return {"kind": "epoch", "epoch": number, "step": at, "train": train, "val": val, "seconds": seconds}


def probe(at: int, *, values: Sequence[float] = (4.0, 2.0, 1.0), terms: Sequence[str] = ("feature",)) -> Record:
    """As the probe writes it, of a projector with three singular values and three teacher channels."""
    spectrum = {
        "values": list(values),
        "index": [0, 1, 2],
        "count": 3,
        "below_initial": 0.5,
        "stable_rank": sum(v * v for v in values) / max(values) ** 2,
        "norm": 4.5,
    }
    fit = {
        "correlation": {"mean": 0.62, "quantiles": [0.1 * tenth for tenth in range(11)]},
        "histogram": {"edges": [0.0, 0.5, 1.0], "counts": [1, 2]},
        "cka_after": 0.75,
    }
    term = {
        "widths": [3, 3],
        "projector": "linear",
        "spectrum": spectrum,
        "spectrum_normalized": {**spectrum, "values": [1.5, 1.0, 0.5]},
        "dynamics": {"pull": 1.25},
        "fit": fit,
    }
    return {
        "kind": "probe",
        "step": at,
        "epoch": 1.0,
        "seconds": 0.08,
        "images": 128,
        "terms": dict.fromkeys(terms, term),
        "student": {"top1": 0.5, "agreement": 0.8125},
        "balance": {"norms": {"task": 1.0}, "cosines": {"task|feature": -0.25}},
    }


def write(folder: Path, *records: Mapping[str, Any]) -> Path:
    """Put records into a run folder's log, as a whole."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return folder


def lock(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """Take the rights on a file, or on all that is in a folder, away: also from root, whom modes do not stop."""

    def refusing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *more: Any, **named: Any) -> Any:
            if isinstance(path, (str, os.PathLike)):
                name = Path(os.fspath(path))
                # A folder without rights has a name and a kind, a file without rights as well.
                if (name == place and function not in kinds) or place in name.parents:
                    raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return function(path, *more, **named)

        return call

    kinds = (os.stat, os.lstat)
    for module, names in ((os, ("stat", "lstat", "open", "scandir", "listdir", "mkdir")), (io, ("open",))):
        for name in names:
            monkeypatch.setattr(module, name, refusing(getattr(module, name)))


def add(folder: Path, *records: Mapping[str, Any]) -> None:
    """Add records to the log, as the run does."""
    with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
