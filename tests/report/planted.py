"""Run folders as a run writes them, with every record of the probe planted, and a reader of pages."""

import base64
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

VOID = {"meta", "br", "img", "input"}
INSIDE = ("#", "data:image/png;base64,", "data:image/jpeg;base64,")
EVIL = '<script>alert("x")</script>'


class Page(HTMLParser):
    """Checks that tags are closed in order, and keeps what the tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def make_run(
    folder: Path,
    *,
    method: str = "projector",
    seed: int = 0,
    epochs: int = 4,
    top1: float = 0.8,
    ended: bool = True,
    **more: Any,
) -> Path:
    """A run folder as the run itself writes it."""
    folder.mkdir(parents=True)
    recipe = {
        "name": "digits",
        "method": method,
        "seed": seed,
        "epochs": epochs,
        "lr": 0.05,
        "teacher_tap": None,
        **more,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    finding = {
        "level": "warning",
        "name": "gradients",
        "message": "feature pulls 14 times as hard",
        "advice": "lower it",
    }
    records: list[Mapping[str, Any]] = [
        {"kind": "note", "text": "data digits: 1437 train"},
        {"kind": "preflight", "findings": [{"level": "ok", "name": "frozen", "message": "yes", "advice": ""}, finding]},
        {
            "kind": "start",
            "counts": {"student": 1000, "teacher": 64_000, "terms": 32},
            "device": "cpu",
            "versions": {"torch": "2"},
        },
    ]
    for epoch in range(1, epochs + 1):
        value = top1 - min(0.1, 0.4 / epochs) * (epochs - epoch)
        parts = {"task": 2.0 / epoch, "feature": 3.0 / epoch}
        readings = {"feature/correlation": 1 - 1 / epoch}
        records.append(
            {"kind": "step", "step": 10 * epoch, "epoch": epoch, "loss": 5.0, "parts": parts, "readings": readings}
            | {"lr": 0.05, "images_per_second": 900.0}
        )
        train = {"loss": 5.0 / epoch, **parts, "images_per_second": 900.0}
        val = {"top1": value, "top5": 0.99, "loss": 1.0 / epoch}
        records.append(
            {"kind": "epoch", "epoch": epoch, "step": 10 * epoch, "train": train, "val": val, "seconds": 2.0 * epoch}
        )
    if ended:
        summary = {
            "recipe": "digits",
            "method": method,
            "seed": seed,
            "metric": "top1",
            "last": {"top1": top1, "top5": 0.99, "loss": 0.25},
            "best": {"epoch": epochs, "top1": top1},
            "teacher": None if method == "alone" else {"top1": 0.95},
            "seconds": 8.0,
            "images_per_second": 900.0,
            "peak_memory_mib": 1234.5,
            "parameters": {"student": 1000, "teacher": 64_000, "terms": 32},
            "data": {"name": "digits", "train": 1437, "val": 360},
            "versions": {"limbeck": "0.1.0", "torch": "2.15.0"},
            "commit": "0123abc",
            "device": "cpu",
        }
        records.append({"kind": "end", "summary": summary})
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return folder


def read(path: Path) -> tuple[str, Page]:
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def check_scripts(text: str, page: Page) -> None:
    """At most one script, the page's own, and the policy names its hash: a browser runs no other."""
    (policy,) = [str(meta["content"]) for meta in page.all("meta") if "http-equiv" in meta]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    scripts = page.all("script")
    assert scripts == ([{}] if scripts else [])
    assert ("script-src" in policy) == bool(scripts) == bool([f for f in page.all("figure") if "data-frames" in f])
    if scripts:
        source = text.split("<script>")[1].split("</script>", maxsplit=1)[0]
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert policy.endswith(f"; script-src 'sha256-{digest}'")


def check_page(text: str, page: Page) -> None:
    """What holds for every page: one file, no script, no network, names for what is drawn."""
    assert len(text.encode()) < 6_000_000
    assert "://" not in text
    assert not {"link", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in page.tags}
    check_scripts(text, page)
    outside = [
        str(attributes[name])
        for _, attributes in page.tags
        for name in attributes
        if name in ("src", "href") and not str(attributes[name]).startswith(INSIDE)
    ]
    runs = [str(link["href"]) for link in page.all("a") if not str(link["href"]).startswith("#")]
    assert outside == runs
    assert all(place.endswith("/report.html") and ":" not in place for place in runs)  # pages of runs beside this one
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {str(link["href"])[1:] for link in page.all("a")} <= {*map(str, ids), *(place[1:] for place in runs)}
    for svg in page.all("svg"):
        assert svg["role"] == "img"
        assert set(str(svg["aria-labelledby"]).split()) <= set(map(str, ids))
    assert len(page.all("h1")) == 1
    assert "nan" not in {value for _, attributes in page.tags for value in attributes.values()}


def comparison(folder: Path, *, seeds: int = 3) -> Path:
    """A comparison folder with its runs."""
    rows: list[dict[str, Any]] = []
    for method, top1 in (("alone", 0.79), ("kd", 0.9), ("projector", 0.89)):
        names = [f"{method}-seed{seed}" for seed in range(seeds)]
        for seed, name in enumerate(names):
            make_run(folder / name, method=method, seed=seed, top1=top1 + 0.01 * seed)
        spread = (
            {"sd": 0.01, "low": top1 - 0.02, "high": top1 + 0.03}
            if seeds > 1
            else {"sd": None, "low": None, "high": None}
        )
        gap = top1 - 0.79
        ends = {"sd": None, "low": None, "high": None}
        if seeds > 1:  # Student's interval of three seeds
            ends = {"sd": 0.105 / 4.302653 * 3**0.5, "low": gap - 0.105, "high": gap + 0.105}
        paired = None if method == "alone" else {"against": "alone", "n": seeds, "mean": gap, **ends}
        rows.append(
            {"method": method, "n": seeds, "mean": top1, **spread, "best_mean": top1 + 0.01, "paired": paired}
            | {"seconds": 4.2, "runs": names}
        )
    record = {
        "command": "limbeck compare --recipe digits",
        "recipe": {"name": "digits", "lr": 0.05},
        "metric": "top1",
        "rows": rows,
        "teacher": {"top1": 0.99, "run": "teachers/one"},
    }
    (folder / "comparison.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


CHARTS = (
    "spectrum", "ranks", "below", "dynamics", "forces", "memory", "decorrelation", "fit", "histogram", "gradient-share",
    "cka", "dead",
)  # fmt: skip
"""The charts of every term."""

WHOLE = (
    "balance", "angles", "agreement", "calibration", "equivariance", "curve-top1", "curve-loss", "part-feature",
    "learning-rate", "cost",
)  # fmt: skip
"""Those of a run as a whole."""


def spectrum(progress: float, *, count: int = 64, normalized: bool = False) -> dict[str, Any]:
    """Singular values that fall ever more steeply while training goes on."""
    index = list(range(0, count, max(1, count // 256)))
    steep = 0.5 + (2.0 if normalized else 4.0) * progress
    values = [(1.0 if normalized else 1.0 + progress) * math.exp(-steep * i / count * 3) for i in index]
    total, squares = sum(values), sum(v * v for v in values)
    return {
        "values": values,
        "index": index,
        "count": count,
        "below_initial": 0.9 * progress,
        "below_tenth": 0.6 * progress,
        "stable_rank": squares / max(values) ** 2,
        "effective_rank": math.exp(-sum(v / total * math.log(v / total) for v in values)),
        "participation_ratio": squares**2 / sum(v**4 for v in values),
        "condition": values[0] / values[-1],
        "norm": math.sqrt(squares),
    }


def term(progress: float, *, count: int = 64) -> dict[str, Any]:
    """What the probe says of a term with a projector."""
    mean = 0.1 + 0.7 * progress
    counts = [math.exp(-((((b + 0.5) / 10 - 1) - mean) ** 2) / 0.08) for b in range(20)]
    shares = [math.exp(-0.25 * i * (1 + progress)) for i in range(10)]
    return {
        "widths": [count, 2 * count],
        "projector": "linear",
        "spectrum": spectrum(progress, count=count),
        "spectrum_normalized": spectrum(progress, count=count, normalized=True),
        "dynamics": {
            "whitened": 0.9 - 0.6 * progress,
            "least_squares": 0.8 - 0.7 * progress,
            "ridge": 0.8 - 0.75 * progress,
            "gradient": 0.5 * math.exp(-3 * progress),
            "decay": 0.005 * (1 + progress),
            "pull": 100 * math.exp(-3 * progress) / (1 + progress),
            "initial_share": math.exp(-4 * progress),
            "initial_norm_ratio": 1 + progress,
            "step_change": 0.3 * math.exp(-2 * progress),
        },
        "decorrelation": {
            "input_output": 0.4 - 0.2 * progress,
            "student": 0.2 - 0.1 * progress,
            "projected": 0.15 - 0.05 * progress,
            "teacher": 0.08,
        },
        "fit": {
            "correlation": {"mean": mean, "quantiles": [mean - 0.35 + 0.05 * i for i in range(11)]},
            "histogram": {"edges": [i / 10 - 1 for i in range(21)], "counts": counts},
            "gradient_share": [share / sum(shares) for share in shares],
            "cka_before": 0.2 + 0.4 * progress,
            "cka_after": 0.3 + 0.6 * progress,
            "dead_student": 0.02,
            "dead_projected": 0.01 * progress,
            "dead_teacher": 0.0,
            "student_change": 0.7 * progress,
        },
    }


def probe(step: int, of: int, *, terms: Sequence[str] = ("feature",), count: int = 64) -> dict[str, Any]:
    """A record of the probe with everything that it can hold."""
    progress = step / of
    first = {"teacher": {"batch_dependence": 0.0, "repeatability": 0.0}} if step == 0 else {}
    return {
        "kind": "probe",
        "step": step,
        "epoch": 10 * progress,
        "seconds": 0.01,
        "images": 128,
        "terms": {name: term(progress, count=count) for name in terms},
        "student": {
            "top1": 0.1 + 0.7 * progress,
            "loss": 2.3 - 1.5 * progress,
            "agreement": 0.1 + 0.72 * progress,
            "ece": 0.2 - 0.15 * progress,
            "confidence": 0.2 + 0.6 * progress,
            "teacher_top1": 0.95,
            "teacher_ece": 0.03,
            "teacher_confidence": 0.97,
            "train_top1": 0.1 + 0.8 * progress,
        },
        "balance": {
            "norms": {"task": 1.0 - 0.5 * progress, "feature": 3.0 - progress},
            "weighted": {"task": 1.0 - 0.5 * progress, "feature": 6.0 - 2 * progress},
            "cosines": {"task|feature": 0.3 - 0.2 * progress},
            "suggested": {"feature": 0.4},
        },
        "equivariance": {f"blocks.{i}": 0.05 * (i + 1) * (1.5 - progress) for i in range(12)},
        **first,
    }


def picture(seed: int, size: int = 32, kind: str = "PNG") -> str:
    """A small image as base64."""
    pixels = bytes(
        (seed * 37 + x * (3 + c) + y * (5 - c)) % 256 for y in range(size) for x in range(size) for c in range(3)
    )
    file = io.BytesIO()
    Image.frombytes("RGB", (size, size), pixels).save(file, format=kind)
    return base64.b64encode(file.getvalue()).decode()


def make_samples(folder: Path, count: int = 24) -> None:
    """``samples.json`` as a run writes it."""
    classes = ["cat", "dog", "lighthouse", "bullet train"]
    samples = [
        {
            "index": 7 * i,
            "label": i % 4,
            "png": picture(i),
            "student": [[(i + 1) % 4, 0.62], [i % 4, 0.3], [(i + 2) % 4, 0.05]],
            "teacher": [[i % 4, 0.91], [(i + 1) % 4, 0.05], [(i + 3) % 4, 0.01]],
        }
        for i in range(count)
    ]
    (folder / "samples.json").write_text(json.dumps({"classes": classes, "samples": samples}), encoding="utf-8")


def append(folder: Path, *records: Mapping[str, Any]) -> None:
    """Add records to the log of a run."""
    with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
        log.writelines(json.dumps(record) + "\n" for record in records)


def make_probed(
    folder: Path, *, probes: int = 8, terms: Sequence[str] = ("feature",), count: int = 64, steps: int = 0, **more: Any
) -> Path:
    """A run with probes, samples, and the records of the images and inputs."""
    make_run(folder, **more)
    last = 10 * max(probes - 1, 1)
    append(folder, *(probe(10 * i, last, terms=terms, count=count) for i in range(probes)))
    append(
        folder,
        {
            "kind": "data",
            "leaked": 3,
            "leaked_examples": [["val/a.png", "train/b.png"]],
            "conflicting": 1,
            "train_duplicates": 7,
        },
        {"kind": "inputs", "teacher": {"layer": "bn1", "shift": 0.12, "scale": 1.05}},
        *(
            {
                "kind": "step",
                "step": 10_000 + step,
                "epoch": 1,
                "loss": 1.0 / (1 + step),
                "parts": {"task": 2.0, "feature": 3.0},
                "readings": {"feature/correlation": math.tanh(step / 500)},
                "lr": 0.05,
                "images_per_second": 900.0 + step % 50,
            }
            for step in range(steps)
        ),
    )
    make_samples(folder)
    return folder


FAULTS = {
    "heavy": "balance",
    "rank one/2": "spectrum-rank-one-2",
    "dead": "dead-dead",
    "passive": "cka-passive",
    "gap": "fit-gap",
}
"""Terms of a run with faults, by the order of their verdicts, and the figure that shows each."""


def make_faulty(folder: Path) -> Path:
    """A run with one fault in each of its terms."""
    make_run(folder)
    for step in (0, 10, 20):
        record = probe(step, 20, terms=list(FAULTS))
        record["balance"] = {"weighted": {"task": 1.0, **dict.fromkeys(FAULTS, 5.0), "heavy": 1000.0}}
        record["student"] |= {"top1": 0.3, "train_top1": 0.3}
        terms = record["terms"]
        terms["rank one/2"]["spectrum_normalized"]["effective_rank"] = 1.1
        terms["dead"]["fit"]["dead_student"] = 0.5
        terms["passive"]["fit"]["student_change"] = 0.01
        terms["gap"]["fit"]["correlation"]["mean"] = 0.3
        append(folder, record)
    return folder


def make_detected(folder: Path, *, teacher: bool = True, classes: int = 3, **more: Any) -> Path:
    """A run of a detector, with what it finds."""
    make_run(folder, **{"task": "detection", **more})
    boxes = detected(classes=classes, teacher=teacher)
    (folder / "boxes.json").write_text(json.dumps(boxes), encoding="utf-8")
    return folder


def detected(*, classes: int = 3, teacher: bool = True) -> dict[str, Any]:
    """``boxes.json`` as a run writes it."""
    who = {"student": 0.0, **({"teacher": 0.2} if teacher else {})}
    return {
        "classes": [
            ("koala", "bullet train", "a class with a name that is far too long")[i % 3] for i in range(classes)
        ],
        "models": {
            name: {
                "cut": 0.25 + more / 4,
                "figures": {"ap": 0.3 + more, "ap50": 0.6 + more, "ap75": 0.25 + more, "ap_small": 0.1 + more},
                "curves": {iou: [max(0.0, 1 - r / 60 + more) for r in range(101)] for iou in ("0.50", "0.75")},
                "classes": [None if i == 1 else 0.2 + more + 0.01 * i for i in range(classes)],
            }
            for name, more in who.items()
        },
        "images": [
            {
                "index": 3 * i,
                "kind": ("missed", "gained", "neither", "both")[i % 4],
                "jpeg": picture(i, 48, "JPEG"),
                "width": 48,
                "height": 48,
                "truth": [{"box": [4.0, 4.0, 30.0, 40.0], "label": i % classes, "crowd": i == 2}],
                **{
                    name: [
                        {"box": [5.0, 3.0, 31.5, 39.0], "label": i % classes, "score": 0.91, "right": True},
                        {"box": [20.0, 20.0, 60.0, 47.0], "label": 0, "score": 0.4, "right": False},
                    ]
                    for name in who
                },
            }
            for i in range(8)
        ],
    }
