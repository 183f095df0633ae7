"""Runs with a fault that was made on purpose, and healthy ones: what `limbeck.report.verdict` says of each.

    python benchmarks/faults.py --out FOLDER            # on the digits: minutes on one core
    python benchmarks/faults.py --out FOLDER --read RUN...   # the verdicts of other, healthy runs as well

Every run is an ordinary one, from a recipe. A fault of a model is in a function of this file, named as
``benchmarks.faults:FUNCTION`` (start it from the root of the checkout); one of the data is in a folder of images that
is written first. The figures behind the rules are printed too, so that a threshold can be seen to lie between the two.
Runs that are there already are not made again.
"""

import argparse
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.logs.records import Record, mapping, number
from limbeck.models import InputSpec, build
from limbeck.models.small import SmallCNN
from limbeck.recipes.published import digits
from limbeck.recipes.recipe import Recipe
from limbeck.report.verdict import verdicts
from limbeck.runs.run import run
from limbeck.storage.files import save_json

HALF = (0.5, 0.5, 0.5)


def wrong_statistics(num_classes: int) -> nn.Module:
    """The teacher of the digits, fed by ImageNet's statistics instead of those it was trained with."""
    model = SmallCNN(32, num_classes=num_classes)
    model.input_spec = InputSpec(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), size=8)
    return model


def bytes_for_floats(num_classes: int) -> nn.Module:
    """The same teacher on images from 0 to 255."""
    model = SmallCNN(32, num_classes=num_classes)
    model.input_spec = InputSpec(mean=HALF, std=tuple(v / 255 for v in HALF), size=8)
    return model


def vit_from_zero(num_classes: int) -> nn.Module:
    """A small ViT that was trained on images from -1 to 1, on images from 0 to 1."""
    model = build("small/vit-32", num_classes=num_classes, size=16).module
    model.input_spec = InputSpec(mean=(0.0,) * 3, std=(1.0,) * 3, size=16)
    return model


def batch_statistics(num_classes: int) -> nn.Module:
    """The same teacher, whose batch norms normalize by the batch whatever its mode is."""

    class Forgetful(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return functional.batch_norm(input, None, None, self.weight, self.bias, training=True)

    model = SmallCNN(32, num_classes=num_classes)
    for name in ("bn1", "bn2", "bn3"):
        setattr(model, name, Forgetful(getattr(model, name).num_features))
    model.input_spec = InputSpec(mean=HALF, std=HALF, size=8)
    return model


def always_dropping(num_classes: int) -> nn.Module:
    """The same teacher with a dropout that does not follow eval()."""

    class Dropping(SmallCNN):
        def forward(self, images: Tensor) -> Tensor:
            x = functional.relu(self.bn1(self.conv1(images)))
            x = functional.relu(self.bn2(self.conv2(x)))
            x = functional.relu(self.bn3(self.conv3(x)))
            return self.fc(functional.dropout(x.mean((2, 3)), 0.3))

    model = Dropping(32, num_classes=num_classes)
    model.input_spec = InputSpec(mean=HALF, std=HALF, size=8)
    return model


def frozen_student(num_classes: int) -> nn.Module:
    """A student of which only the classifier is trained."""
    model = SmallCNN(4, num_classes=num_classes)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("fc"))
    model.input_spec = InputSpec(mean=HALF, std=HALF, size=8)
    return model


def slow_student(num_classes: int) -> nn.Module:
    """A student whose body gets a thousandth of its gradient."""
    model = SmallCNN(4, num_classes=num_classes)
    for name, parameter in model.named_parameters():
        if not name.startswith("fc"):
            parameter.register_hook(lambda gradient: gradient / 1000)
    model.input_spec = InputSpec(mean=HALF, std=HALF, size=8)
    return model


def half_dead_student(num_classes: int) -> nn.Module:
    """A student of which ReLU has switched off half of the last channels for good."""
    model = SmallCNN(8, num_classes=num_classes)
    with torch.no_grad():
        model.bn3.bias[:8] = -20
    model.input_spec = InputSpec(mean=HALF, std=HALF, size=8)
    return model


@dataclass(frozen=True)
class Case:
    """A run, what it differs in from the digits' recipe, and the verdict that it should get, if it should get one."""

    name: str
    expected: str
    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])


def cases(folder: Path, teacher: Path) -> list[Case]:
    """All runs; the teacher is a run folder."""

    def taught_by(function: str) -> dict[str, Any]:
        return {"teacher": f"benchmarks.faults:{function}", "teacher_weights": str(teacher)}

    def student(function: str) -> dict[str, Any]:
        return {"student": f"benchmarks.faults:{function}"}

    plain = {"student_norm": "none", "teacher_norm": "none", "feature_loss": "mean_squared_error"}
    return [
        Case("collapsed, decayed away", "collapsed-projector", {**plain, "weight_decay": 1.0, "lr": 0.01}),
        Case("collapsed, rank 1 of 16", "collapsed-projector", {
            "student": "small/cnn-8", "projector": "low_rank", "projector_rank": 1}),
        Case("passive, body frozen", "passive-student", student("frozen_student")),
        Case("passive, body at a thousandth", "passive-student", student("slow_student")),
        Case("dead student channels", "dead-channels", student("half_dead_student")),
        Case("dead teacher channels", "dead-channels", {"teacher_weights": str(folder / "pruned.safetensors")}),
        Case("capacity gap, width 1", "capacity-gap", {"student": "small/cnn-1"}),
        Case("capacity gap, one epoch", "capacity-gap", {"student": "small/cnn-2", "epochs": 1}),
        Case("teacher by batch statistics", "teacher-in-train-mode", taught_by("batch_statistics")),
        Case("teacher drops out", "random-teacher", taught_by("always_dropping")),
        Case("teacher with ImageNet's statistics", "wrong-input-statistics", taught_by("wrong_statistics")),
        Case("teacher on 0 to 255", "wrong-input-statistics", taught_by("bytes_for_floats")),
        Case("ViT teacher on 0 to 1", "wrong-input-statistics", {
            "teacher": "benchmarks.faults:vit_from_zero", "teacher_weights": str(folder / "vit"), "size": 16}),
        Case("weight 1000 times", "weight-too-large", {"feature_weight": 2000.0}),
        Case("weight 100 times", "weight-too-large", {"feature_weight": 200.0}),
        Case("weight a thousandth", "weight-too-small", {"feature_weight": 0.002}),
        Case("a tenth of validation leaked", "leaking-data", {"data": str(folder / "leaking"), "size": 8}),
        Case("labels in conflict", "conflicting-labels", {"data": str(folder / "conflicting"), "size": 8}),
        Case("healthy, default", ""),
        Case("healthy, another seed", "", {"seed": 1}),
        Case("healthy, projector+kd", "", {"method": "projector+kd"}),
        Case("healthy, kd", "", {"method": "kd"}),
        Case("healthy, student of width 4", "", {"student": "small/cnn-4"}),
        Case("healthy, student of width 16", "", {"student": "small/cnn-16"}),
        Case("healthy, log_sum", "", {"feature_loss": "log_sum"}),
        Case("healthy, mlp", "", {"projector": "mlp", "student": "small/cnn-4"}),
        Case("healthy, squared error without norms", "", {**plain, "student": "small/cnn-4"}),
        Case("healthy, few labels", "", {"train_limit": 200, "epochs": 120, "student": "small/cnn-4"}),
        Case("healthy, augmented", "", {"augmentation": "standard", "student": "small/cnn-4", "flip": False}),
        Case("healthy, ViT teacher", "", {
            "teacher": "small/vit-32", "teacher_weights": str(folder / "vit"), "size": 16}),
        Case("healthy, AdamW", "", {"optimizer": "adamw", "lr": 0.002, "student": "small/cnn-4"}),
        Case("healthy, label-free", "", {"labels": False, "method": "projector", "student": "small/cnn-4"}),
    ]  # fmt: skip


def write_data(folder: Path) -> None:
    """The digits as images, once with a tenth of the validation images in the training set, once with two labels."""
    from PIL import Image
    from sklearn.datasets import load_digits

    found = load_digits()
    images = [Image.fromarray((pixels * (255 / 16)).astype("uint8")).convert("RGB") for pixels in found.images]
    for kind in ("leaking", "conflicting"):
        if (folder / kind).exists():
            continue
        for row, (image, label) in enumerate(zip(images, found.target, strict=True)):
            part = "val" if row % 4 == 0 else "train"
            places = [(part, label)]
            if kind == "leaking" and part == "val" and row % 40 == 0:
                places.append(("train", label))
            if kind == "conflicting" and part == "train" and row % 40 == 1:
                places.append(("train", (label + 1) % 10))
            for where, name in places:
                target = folder / kind / where / str(name)
                target.mkdir(parents=True, exist_ok=True)
                image.save(target / f"{row:04}-{label}.png")


def write_pruned(teacher: Path, to: Path) -> None:
    """The teacher's weights with a quarter of the last channels cut."""
    from safetensors.torch import load_file, save_file

    weights = load_file(teacher / "student.safetensors")
    for name in ("bn3.weight", "bn3.bias"):
        weights[name][:16] = 0
    save_file(weights, to)


FIGURES = {
    "rank": ("terms", "*", "spectrum_normalized", "effective_rank"),
    "count": ("terms", "*", "spectrum_normalized", "count"),
    "norm": ("terms", "*", "dynamics", "initial_norm_ratio"),
    "change": ("terms", "*", "fit", "student_change"),
    "c": ("terms", "*", "fit", "correlation", "mean"),
    "dead s": ("terms", "*", "fit", "dead_student"),
    "dead t": ("terms", "*", "fit", "dead_teacher"),
    "top1": ("student", "top1"),
    "train": ("student", "train_top1"),
    "teacher": ("student", "teacher_top1"),
}


def read(folder: Path) -> dict[str, Any]:
    """Verdicts and figures of a run."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    probes = [line for line in lines if line["kind"] == "probe"]
    last: Record = probes[-1] if probes else {}
    term = next((name for name, record in mapping(last, "terms").items() if "widths" in record), "*")
    figures = {key: number(last, *(term if part == "*" else part for part in path)) for key, path in FIGURES.items()}
    first_c = number(probes[0], "terms", term, "fit", "correlation", "mean") if probes else None
    weighted = mapping(last, "balance", "weighted")
    ratios = {
        f"{name}/task": weighted[name] / weighted["task"] for name in weighted if name != "task" and "task" in weighted
    }
    soundness = mapping(probes[0], "teacher") if probes else {}
    inputs = next((mapping(line, "teacher") for line in lines if line["kind"] == "inputs"), {})
    figures |= {"c at first": first_c, **ratios, **soundness, **{key: inputs.get(key) for key in ("shift", "scale")}}
    said = verdicts(lines)
    return {
        "verdicts": [verdict.name for verdict in said],
        "seen": [verdict.seen for verdict in said],
        "figures": {key: float(f"{value:.4g}") for key, value in figures.items() if isinstance(value, float)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=[], help="cases whose name begins so")
    parser.add_argument("--read", type=Path, nargs="+", default=[], help="further runs, taken as healthy")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    base = digits().changed({"probe": 40, "compile": "off"})
    teacher = args.out / "teacher"
    alone = base.changed({"method": "alone", "teacher": None, "teacher_epochs": None, "probe": "off"})
    vit = {"student": "small/vit-32", "size": 16, "optimizer": "adamw", "lr": 0.002}
    for place, changes in ((teacher, {"student": "small/cnn-32"}), (args.out / "vit", vit)):
        if not (place / "summary.json").is_file():
            run(alone.changed(changes), place)
    write_data(args.out)
    write_pruned(teacher, args.out / "pruned.safetensors")
    results: dict[str, Any] = {}
    for case in cases(args.out, teacher):
        if args.only and not case.name.startswith(tuple(args.only)):
            continue
        folder = args.out / case.name.replace(" ", "-").replace(",", "").replace("+", "-")
        recipe: Recipe = base.changed({"teacher_weights": str(teacher), **case.changes})
        if not (folder / "summary.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            run(recipe, folder)
        results[case.name] = {"expected": case.expected, **read(folder)}
    for folder in args.read:
        results[f"healthy, {folder.name}"] = {"expected": "", **read(folder)}
    for name, found in results.items():
        expected = [found["expected"]] if found["expected"] else []
        mark = "ok  " if found["verdicts"] == expected else "DIFF" if set(expected) - set(found["verdicts"]) else "more"
        print(mark, name, "|", ", ".join(found["verdicts"]) or "none", "|", found["figures"])
    save_json(results, args.out / "faults.json")


if __name__ == "__main__":
    main()
