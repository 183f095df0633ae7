"""How far wrong input statistics move what reaches a trained model, what that costs it, and whether it is told.

    python benchmarks/input_faults.py --runs RUN... --data FOLDER --out FILE.json

Every run is the folder of a trained classifier. The same validation images are given to it as in its training (healthy,
also in ways that are no fault: other images, fewer kinds of them, mixed), and in each wrong way that is usual. Of each
way the script prints shift and scale at the first batch norm (`first_norm_shift`; of a model without one the confidence
under the usual normalizations), the top-1, and whether there is a verdict. Nothing is trained.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.assembly.build import load_student
from limbeck.assembly.probing import OTHER_STATISTICS, input_record
from limbeck.data import Batch, Data, DataSpec, open_data
from limbeck.models import InputSpec, InputTransform, Model
from limbeck.report.verdict import verdicts
from limbeck.storage.files import save_json

PROBED = 128  # images, as in a run


def statistics(name: str) -> Callable[[InputSpec], InputSpec]:
    mean, std = OTHER_STATISTICS[name]
    return lambda spec: replace(spec, mean=mean, std=std)


def bytes_for_floats(spec: InputSpec) -> InputSpec:
    """Images from 0 to 255 for a model that knows 0 to 1."""
    return replace(spec, std=tuple(value / 255 for value in spec.std), mean=tuple(value / 255 for value in spec.mean))


def twice(spec: InputSpec) -> InputSpec:
    """Normalized once by the loader and once more by the model."""
    pairs = list(zip(spec.mean, spec.std, strict=True))
    return replace(spec, mean=tuple(m + s * m for m, s in pairs), std=tuple(s * s for _, s in pairs))


def same(spec: InputSpec) -> InputSpec:
    return spec


def as_they_are(images: Tensor) -> Tensor:
    return images


WAYS: dict[str, tuple[Callable[[InputSpec], InputSpec], Callable[[Tensor], Tensor]]] = {
    "as in training": (same, as_they_are),
    "ImageNet's mean and std": (statistics("imagenet"), as_they_are),
    "mean and std 0.5": (statistics("half"), as_they_are),
    "not normalized, 0 to 1": (statistics("none"), as_they_are),
    "normalized twice": (twice, as_they_are),
    "0 to 255": (bytes_for_floats, as_they_are),
    "BGR": (same, lambda images: images.flip(1)),
    "BGR, mean and std 0.5": (statistics("half"), lambda images: images.flip(1)),
    "gray": (same, lambda images: images.mean(1, keepdim=True).expand_as(images)),
    "negative": (same, lambda images: 1 - images),
    "half as bright": (same, lambda images: images / 2),
    "gamma 2.2 undone": (same, lambda images: images**2.2),
    "upside down": (same, lambda images: images.flip(2)),
}
"""What is done to the statistics, and to the images."""


def score(model: Model, batch: Batch) -> float:
    transform = InputTransform(model.input)
    assert batch.target is not None
    with torch.no_grad():
        logits = torch.cat([model.module(transform(images)) for images in batch.images.split(PROBED)])
    return float((logits.argmax(1) == batch.target).float().mean())


def measure(model: Model, batch: Batch) -> dict[str, Any]:
    record = input_record(model, batch.images[:PROBED])
    said = verdicts([{"kind": "inputs", "teacher": record}])
    return {"top1": score(model, batch), **record, "told": bool(said)}


def healthy_batches(data: Data, count: int) -> dict[str, Batch]:
    """Images that are no fault: others than those that were probed, those of one class, those of a training batch."""
    many = data.sample("val", data.val_count)
    assert many.target is not None
    found = {"other images": many.index % 7 == 3}
    for label in (0, 3, 11, 42):
        if label < len(data.classes):
            found[f"images of class {label} alone"] = many.target == label
    batches = {
        name: Batch(many.images[rows][:count], many.target[rows][:count], many.index[rows][:count])
        for name, rows in found.items()
    }
    batches["a training batch, augmented"] = next(iter(data.train_loader(batch_size=PROBED, seed=0)))
    return batches


def draws(model: Model, data: Data, count: int = 30) -> dict[str, Any]:
    """The range of what many healthy sets have: draws of mixed images, and every class alone."""
    many = data.sample("val", data.val_count)
    assert many.target is not None
    generator = torch.Generator().manual_seed(0)
    mixed = [torch.randperm(len(many.images), generator=generator)[:PROBED] for _ in range(count)]
    narrow = [(many.target == label).nonzero()[:PROBED, 0] for label in range(len(data.classes))]
    found: dict[str, Any] = {}
    for name, sets in ((f"{count} draws of mixed images", mixed), (f"{len(narrow)} classes, each alone", narrow)):
        records = [input_record(model, many.images[rows]) for rows in sets]
        columns = {key: torch.tensor([float(str(record[key])) for record in records]) for key in ("shift", "scale")}
        columns["shift / swapped"] = columns["shift"] / torch.tensor([float(str(r["swapped"])) for r in records])
        marks = torch.tensor([0.0, 0.5, 0.95, 0.99, 1.0])
        told = sum(bool(verdicts([{"kind": "inputs", "teacher": record}])) for record in records)
        found[name] = {"told": told} | {key: values.quantile(marks).tolist() for key, values in columns.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1000, help="for the top-1")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    for folder in args.runs:
        model = load_student(folder)
        model.module.eval()
        data = open_data(DataSpec(source=args.data, size=model.input.size, augmentation="standard"))
        batch = data.sample("val", args.images)
        found: dict[str, Any] = {}
        for name, (spec, change) in WAYS.items():
            given = Batch(change(batch.images), batch.target, batch.index)
            found[name] = measure(replace(model, input=spec(model.input)), given)
        for name, other in healthy_batches(data, args.images).items():
            found[f"healthy: {name}"] = measure(model, other)
        if "shift" in found["as in training"]:
            found |= {f"healthy: {name}": values for name, values in draws(model, data).items()}
        results[model.name] = found
        for name, values in found.items():
            print(f"{model.name:<18} {name:<36} {values}", flush=True)
    save_json(results, args.out)


if __name__ == "__main__":
    main()
