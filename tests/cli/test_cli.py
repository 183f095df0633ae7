"""The command line: help without torch, every fault in one line with exit code 2, and what reaches the parts below."""

import dataclasses
import errno
import gc
import json
import os
import re
import subprocess
import sys
import time
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.cli import COMMANDS, main
from limbeck.cli.flags import RunFlags, all_fields, make_recipe, parse_recipe
from limbeck.errors import LostProcessError, UserError
from limbeck.recipes import NAMED, Recipe, named

SOURCE = Path(__file__).resolve().parents[2] / "src"
LINE = "limbeck: error: "

FLAGS = {
    "distill": """
        --recipe --out --resume --resume-if-begun --dry-run
        --name --task --teacher --teacher-weights --teacher-epochs --teacher-lr
        --teacher-settings --fit-teacher --no-fit-teacher
        --teacher-size --teacher-tap --teacher-pool
        --student --student-weights --pretrained --no-pretrained --student-tap --student-pool
        --student-logit-tap --frozen-norms --longest --shorter --scales --classes --void
        --on-bad-annotations --levels --background
        --data --val --val-share --size --augmentation --flip --subset --train-limit --labels --no-labels
        --label-file --on-missing-classes --skip-bad-images --workers
        --method --feature-loss --alpha --feature-weight --projector --inverted --no-inverted --projector-hidden
        --projector-count --projector-rank --input-norm --student-norm --teacher-norm
        --logit-loss --logit-weight --temperature --rival-weight --rival-warmup --dkd-beta --review-weight
        --task-weight --label-smoothing
        --epochs --batch-size --optimizer --lr --momentum --weight-decay --schedule --warmup-epochs --milestones --gamma
        --clip --accumulate --sync-batch-norm --no-sync-batch-norm --ema --on-bad-numbers --bad-number-limit
        --cache-views --cache-seed --cache-top-k --cache-precision --cache-limit --cache-folder
        --probe --probe-images --loggers
        --seed --precision --memory-format --compile --device --shard --no-shard --checkpoint-every --process-timeout
    """,
    "train": """
        --recipe --out --resume --resume-if-begun --dry-run --name --task --model --weights --pretrained --no-pretrained
        --frozen-norms --longest --shorter --scales --classes --void --on-bad-annotations
        --data --val --val-share --size --augmentation --flip --subset --train-limit --skip-bad-images --workers
        --label-file --on-missing-classes --label-smoothing
        --epochs --batch-size --optimizer --lr --momentum --weight-decay --schedule --warmup-epochs --milestones --gamma
        --clip --accumulate --sync-batch-norm --no-sync-batch-norm --ema --on-bad-numbers --bad-number-limit
        --probe --probe-images --loggers
        --seed --precision --memory-format --compile --device --shard --no-shard --checkpoint-every --process-timeout
    """,
    "watch": "--once",
    "evaluate": "--data --label-file --probe",
    "export": "--backbone --format --out",
    "recipes": "",
    "report": "--out --figures",
}


def flags_in_help(text: str) -> set[str]:
    """The flags that a help text introduces: the first words of its rows, not those mentioned in a description."""
    found: set[str] = set()
    for row in text.splitlines():
        inside = re.sub(r"^[│ ] ", "", row)
        if re.match(r"--?[a-z]", inside):
            found |= set(re.findall(r"--[a-z-]+", inside.split("  ")[0]))
    return found - {"--help"}


def call(words: str) -> int:
    return main(words.split())


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([command, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", list(FLAGS))
def test_the_flags_are_these_and_a_new_one_is_a_decision(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = help_of(command, capsys)
    assert flags_in_help(text) == set(FLAGS[command].split())
    assert max(len(row) for row in text.splitlines()) <= 80


@pytest.mark.parametrize(
    ("written", "flags", "method"),
    [
        ("", "--no-labels", "projector"),
        ("", "--cache-views 2", "projector+kd"),
        ("method: stages+kd\n", "--epochs 3", "stages+kd"),
        ("method: kd\n", "--no-labels", "kd"),
        ("labels: 0\n", "--epochs 3", "projector"),
        ("", "--epochs 3", "stages+kd"),
    ],
)
def test_a_file_that_names_no_method_leaves_it_to_the_flags(
    written: str, flags: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(f"data: digits\nstudent: small/cnn-2\nteacher: small/cnn-4\n{written}")
    words = ["--recipe", str(file), *flags.split()]
    values, _ = parse_recipe(words, RunFlags(), command="distill", description="", fields=all_fields(), fallback={})
    assert make_recipe(values, all_fields(), words).method == method


@pytest.mark.parametrize("methods", ["alone kd projector", "kd projector", "dist projector+kd", "stages projector"])
def test_a_comparison_takes_what_some_of_its_methods_use(methods: str, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "--recipe", "digits", "--student-tap", "bn3", "--dry-run", "--methods", *methods.split()]
    assert main(words) == 0
    assert "student_tap: bn3" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("command", "more", "less"),
    [
        ("compare", {"--methods", "--seeds"}, {"--method"}),
        (
            "sweep",
            {"--space", "--sampler", "--trials", "--pruner", "--min-epochs", "--confirm", "--seeds"},
            {"--resume", "--resume-if-begun"},
        ),
        ("doctor", set[str](), {"--out", "--resume", "--resume-if-begun", "--dry-run"}),
        ("cache", {"--estimate", "--verify"}, {"--resume", "--resume-if-begun", "--dry-run"}),
    ],
)
def test_commands_on_a_recipe_take_the_flags_of_distill(
    command: str, more: set[str], less: set[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = help_of(command, capsys)
    assert flags_in_help(text) == (set(FLAGS["distill"].split()) | more) - less
    assert max(len(row) for row in text.splitlines()) <= 80


def test_help_is_grouped_and_shows_the_defaults_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "--recipe", "digits", "--help"]) == 0
    text = capsys.readouterr().out
    for group in ("run", "models", "data", "method", "optimization", "cache", "diagnostics", "machine"):
        assert f" {group} options " in text
    assert "(default: small/cnn-2)" in " ".join(text.split())


def _timed(words: list[str]) -> tuple[float, str]:
    """The best of three calls in fresh processes, and what the last one printed."""
    code = (
        "import sys; from limbeck.cli import main; code = main(sys.argv[1:]); "
        "print('LOADED', [m for m in ('torch', 'timm', 'torchvision') if m in sys.modules]); sys.exit(code)"
    )
    best, out = 1e9, ""
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONPATH": str(SOURCE)},
        )
        best, out = min(best, time.perf_counter() - start), done.stdout
    return best, out


@pytest.mark.processes
def test_help_is_quick_and_does_not_import_torch() -> None:
    seconds, out = _timed(["--help"])
    assert "LOADED []" in out
    assert all(command in out for command in COMMANDS)
    assert seconds < 1.5  # measured: 0.1 s on an idle machine; the rest is room for a loaded one
    seconds, out = _timed(["distill", "--help"])
    assert "LOADED []" in out
    assert seconds < 4  # measured: 0.5 s
    assert "LOADED []" in _timed(["sweep", "--help"])[1]


FAULTS: list[tuple[str, str]] = [
    ("distil", 'unknown command "distil" (did you mean "distill"?)'),
    (
        "frobnicate",
        'unknown command "frobnicate"; expected one of distill, train, compare, sweep, cache, rerun, report',
    ),
    ("distill --recipe digits --trust-remote-code", "--trust-remote-code: there is no such flag, since code of a"),
    ("--zzz digits", 'unknown flag "--zzz"; expected one of distill'),
    ("distill --epoch 3", 'unknown flag "--epoch" (did you mean "--epochs"?)'),
    ("distill --epoch=3", 'unknown flag "--epoch" (did you mean "--epochs"?)'),
    ("distill -x", 'unknown flag "-x"; `limbeck distill --help` lists the flags'),
    ("distill --qqq 3", 'unknown flag "--qqq"; `limbeck distill --help` lists the flags'),
    ("distill", "--data: missing; name the images, for example --data FOLDER"),
    ("distill --data x", "--student: missing; name the model to train, for example timm/resnet18"),
    ("distill --data x --student y", "--teacher: missing; method stages+kd needs one (method alone does not)"),
    ("train --data x", "--model: missing; name the model to train"),
    ("train --recipe digits --teacher x", 'unknown flag "--teacher"'),
    ("distill --recipe nope", "no recipe 'nope'; `limbeck recipes` lists them"),
    ("distill --recipe digts", "no recipe 'digts' (did you mean \"digits\"?)"),
    ("distill --recipe nope.yaml", "nope.yaml: cannot be read (No such file or directory)"),
    ("distill --recipe", "--recipe: its value is missing"),
    ("distill --recipe folder", "--data: missing; name the images, for example --data FOLDER"),
    ("distill --recipe imagenet-deit-ti", "--data: missing; name the images, for example --data imagenet:FOLDER"),
    ("distill --recipe digits --epochs", "--epochs: its value is missing; expected a whole number from 1 to"),
    ("distill --recipe digits --epochs abc", "--epochs: expected a whole number from 1 to 1,000,000,000, got 'abc'"),
    ("distill --recipe digits --epochs 1.5", "--epochs: expected a whole number from 1 to 1,000,000,000, got '1.5'"),
    ("distill --recipe digits --epochs 0", "--epochs: expected a whole number from 1 to 1,000,000,000, got 0"),
    ("distill --recipe digits --lr=-1", "--lr: expected a number above 0 and of at most 1e+30, got -1.0"),
    ("distill --recipe digits --lr nan", "--lr: expected a number above 0 and of at most 1e+30, got nan"),
    ("distill --recipe digits --epochs 3 4", 'unexpected "4"; a flag begins with --, and takes one value'),
    ("distill digits", 'unexpected "digits"; a flag begins with --'),
    ("distill --labels False", 'unexpected "False"; a flag begins with --'),
    (
        "distill --recipe digits --method kdd",
        "--method: expected one of alone, kd, projector, projector+kd, ",
    ),
    ("distill --recipe digits --teacher-pool tokn_mean", "--teacher-pool: expected one of automatic, vector, "),
    (
        "distill --recipe digits --milestones 3 x",
        "--milestones: expected a number above 0 and of at most 1e+30, got 'x'",
    ),
    ("distill --recipe digits --milestones 3", "--milestones: nothing reads it with schedule cosine"),
    (
        "distill --recipe cifar100-resnet56-resnet20 --epochs 20",
        "--milestones: expected rising epochs below epochs (20)",
    ),
    (
        "distill --recipe digits --student-norm l2",
        "--student-norm: feature_loss log_correlation is defined on batch norm",
    ),
    ("distill --student a --teacher b --data c --method alone", "--teacher: nothing reads it with method alone"),
    ("distill --recipe digits --name a/b", "--name: expected a text of letters, digits and . _ + -, got 'a/b'"),
    ("distill --recipe digits --out a --resume b", "--resume b and --out a: give one"),
    ("distill --resume nowhere", "--resume: no run in nowhere (no recipe.yaml there)"),
    ("compare --recipe digits --methods", "--methods: its value is missing; expected one or more of alone, kd"),
    ("compare --recipe digits --methods alone kkd", "--methods: expected one of alone, kd, projector, projector+kd"),
    ("compare --recipe digits --methods alone alone", "methods: expected at least one, each once, got alone alone"),
    ("train --student timm/resnet18 --data x", 'unknown flag "--student" (did you mean "--model"?)'),
    (
        "compare --recipe digits --seeds 99999999999999999999999",
        "--seeds: expected a whole number from 1 to 10,000, got",
    ),
    (
        "benchmark --teacher small/cnn-4 --student small/cnn-2 --classes 99999999999999",
        "--classes: expected a whole number from 2 to 1,000,000, got",
    ),
    ("compare --recipe digits --seeds 0", "--seeds: expected a whole number from 1 to 10,000, got 0"),
    ("compare --recipe digits --seeds x", "--seeds: expected a whole number from 1 to 1,000,000,000 or None, got 'x'"),
    ("compare --recipe digits --method kd", 'unknown flag "--method" (did you mean "--methods"?)'),
    ("cache --recipe digits", "--cache-views: missing; how many augmented views of each image to keep, for example 10"),
    ("cache --recipe digits --cache-views 2 --estimate --verify", "--estimate and --verify: give one"),
    (
        "cache --recipe digits --cache-views 0",
        "--cache-views: expected a whole number from 1 to 1,000,000,000 or None",
    ),
    ("distill --recipe digits --cache-top-k 5", "--cache-top-k: nothing reads it with cache_views None, got 5"),
    (
        "distill --recipe digits --cache-views 2 --cache-precision bf16",
        "--cache-precision: expected one of half, exact",
    ),
    ("report", "RUN: missing; `limbeck report --help` says what it is"),
    ("report nowhere", "nowhere: no such run folder"),
    ("report a b", "a: no such run folder"),
    ("report a --figures", "--figures: its value is missing; expected a text"),
    ("report a --fig x", 'unknown flag "--fig" (did you mean "--figures"?)'),
    ("evaluate", "RUN: missing; `limbeck evaluate --help` says what it is"),
    ("evaluate a b", 'unexpected "b"; a flag begins with --'),
    ("export a --format onx", "--format: expected one of safetensors, onnx, torch-export, got 'onx' (did you mean"),
    ("recipes digit", "no recipe 'digit' (did you mean \"digits\"?)"),
]


@pytest.mark.parametrize(("words", "line"), FAULTS, ids=[words for words, _ in FAULTS])
def test_a_fault_is_one_line_and_exit_code_2(
    words: str, line: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(words) == 2
    out, err = capsys.readouterr()
    assert err.startswith(LINE + line)
    assert err.count("\n") == 1
    assert out == ""
    assert list(tmp_path.iterdir()) == []


@dataclass(frozen=True)
class Finding:
    """As `limbeck.runs.preflight.Finding`, without its torch."""

    level: str
    name: str
    message: str
    advice: str = ""


class Parts:
    """Stand-ins for what the commands call, which keep what they were given."""

    def __init__(self) -> None:
        self.runs: list[tuple[Recipe, Path, bool]] = []
        self.if_begun: list[bool] = []
        self.reports: list[Path] = []
        self.findings = [Finding("ok", "shapes", "fit"), Finding("warning", "balance", "uneven", "use 0.5")]
        self.raises: BaseException | None = None
        self.log: list[dict[str, Any]] = [{"kind": "start"}]

    def run(
        self,
        recipe: Recipe,
        folder: Path,
        *,
        resume: bool = False,
        if_begun: bool = False,
        said: set[str] | None = None,
    ) -> dict[str, Any]:
        self.runs.append((recipe, folder, resume))
        self.if_begun.append(if_begun)
        if self.raises is not None:
            raise self.raises
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.yaml").write_text(recipe.to_yaml())
        gain = 0.0 if recipe.method == "alone" else 0.1 + 0.001 * recipe.seed
        teacher = None if recipe.teacher is None else {"top1": 0.99}
        best = {"epoch": 2, "top1": 0.6 + gain}
        summary = {"metric": "top1", "last": {"top1": 0.5 + gain}, "best": best, "teacher": teacher, "seconds": 2.0}
        (folder / "summary.json").write_text(json.dumps(summary))
        if os.environ.get("RANK", "0") == "0":  # as the run log, which is the first process's
            (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in self.log))
        return summary


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Parts:
    stand_in = Parts()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    run = types.ModuleType("limbeck.runs.run")
    vars(run).update(run=stand_in.run)
    inspection = types.ModuleType("limbeck.runs.inspection")
    vars(inspection).update(
        describe=lambda recipe: [("student", recipe.student), ("steps", "20 an epoch")],
        check=lambda recipe, folder: stand_in.findings,
        evaluate=lambda folder, *, data, label_file, say: {"top1": 0.5, "loss": 1.25, "data": float(data is not None)},
    )
    report = types.ModuleType("limbeck.report")
    vars(report).update(write_report=stand_in.reports.append, write_comparison=stand_in.reports.append)
    written = types.SimpleNamespace(path=Path("student.onnx"), parity=1e-6, note="opset 18")
    export = types.ModuleType("limbeck.runs.export")
    vars(export).update(export=lambda folder, *, format, out, backbone: written)
    for module in (run, inspection, report, export):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("limbeck.report", report, raising=False)
    return stand_in


def test_distill_trains_the_recipe_with_flags_on_top(parts: Parts, capsys: pytest.CaptureFixture[str]) -> None:
    more = "--teacher-epochs None --clip 2"
    assert call(f"distill --recipe digits --epochs 3 --lr 1e-3 --no-labels --method kd {more}") == 0
    ((recipe, folder, resume),) = parts.runs
    changes = {"epochs": 3, "lr": 1e-3, "labels": False, "method": "kd", "teacher_epochs": None, "clip": 2.0}
    assert recipe == named("digits").changed(changes)
    assert (folder, resume) == (Path("runs/digits-small-cnn-2-kd-seed0"), False)
    assert parts.reports == [folder]
    out = capsys.readouterr().out
    assert out.splitlines()[0] == f"run folder: {folder}"
    assert "top1: last 60.00%, best 70.00% (epoch 2)" in out
    assert "teacher top1: 99.00%" in out


def test_a_fault_of_several_terms_is_one_line(parts: Parts, capsys: pytest.CaptureFixture[str]) -> None:
    weighted = {"task": 1.0, "feature": 1e3, "feature1": 2e3, "feature2": 1.0}
    parts.log = [{"kind": "probe", "step": 0, "balance": {"weighted": weighted}}]
    assert call("distill --recipe digits --out x") == 0
    (said,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("verdict:")]
    assert said.startswith("verdict: The weight of feature is too large: ")
    assert " Likewise feature1. Change the weight" in said


def test_what_is_wrong_with_a_run_is_said_behind_its_result(parts: Parts, capsys: pytest.CaptureFixture[str]) -> None:
    parts.log = [
        {"kind": "probe", "step": 0, "balance": {"weighted": {"task": 1.0, "kd": 1e3}, "suggested": {"kd": 0.002}}},
        {"kind": "data", "train": 900, "val": 500, "leaked": 50, "leaked_examples": [["v/a.png", "t/b.png"]]},
    ]
    assert call("distill --recipe digits --out x") == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("verdict:")]
    assert said == [
        "verdict: Validation images are among the training images: 50 of 500 validation images (10.0%) are, pixel by "
        "pixel, also images of the training set, for instance v/a.png (t/b.png). Remove the duplicates from the "
        "training set and train again; compare nothing with these figures.",
        "verdict: The weight of kd is too large: Its gradient on the student was 1e+03 times that of the task loss at "
        "the first probe, and 1e+03 times in the median of the run. Change the weight by steps of 4 and compare with "
        "`limbeck compare`. Equal gradients are no aim: the best weights pull 4 to 100 times as hard as the labels.",
    ]
    parts.log = [
        {"kind": "probe", "step": 0, "balance": {"weighted": {"task": 1.0, "kd": 2.0}}},
        {"kind": "data", "train": 900, "val": 500, "leaked": 0},
    ]
    assert call("train --recipe digits --out y") == 0
    out = capsys.readouterr().out
    assert "report: y/report.html" in out
    assert "verdict" not in out


def test_without_labels_a_run_says_whether_its_student_follows(
    parts: Parts, capsys: pytest.CaptureFixture[str]
) -> None:
    for now, words in ((0.7, "follows"), (0.21, "does not follow")):
        looks: list[dict[str, Any]] = [{"kind": "probe", "step": step, "images": 128} for step in (0, 9)]
        parts.log = [looks[0], looks[1] | {"following": {"cka": now, "untrained": 0.2}}]
        assert call("distill --recipe digits --out x") == 0
        (said,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("verdict:")]
        assert said.startswith(
            f"verdict: The student {words} its teacher: CKA {now:.2f} on 128 held-back images, 0.20 "
        )


def test_only_the_first_process_reads_the_log(
    parts: Parts, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others may be on machines that do not have the folder."""
    monkeypatch.setenv("RANK", "1")
    assert call("distill --recipe digits --out x") == 0
    assert not Path("x/log.jsonl").exists()
    assert capsys.readouterr().out == ""
    assert parts.reports == []


def test_distill_needs_no_recipe(parts: Parts) -> None:
    assert call("distill --teacher a --student timm/b --data d --seed 4 --out x") == 0
    assert parts.runs[0][0] == Recipe(teacher="a", student="timm/b", data="d", seed=4)
    assert parts.runs[0][1] == Path("x")


@pytest.mark.parametrize(
    ("flags", "method"),
    [
        ("", "stages+kd"),
        ("--cache-views 2", "projector+kd"),
        ("--student-tap layer3", "projector+kd"),
        ("--method kd", "kd"),
    ],
)
def test_the_recipe_of_a_folder_leaves_its_method_to_the_other_flags(flags: str, method: str, parts: Parts) -> None:
    assert call(f"distill --recipe folder --data d {flags}") == 0
    assert parts.runs[0][0].method == method


def test_a_file_is_a_recipe(parts: Parts) -> None:
    wanted = named("cifar100-resnet56-resnet20").changed({"epochs": 300})
    Path("mine.yaml").write_text(wanted.to_yaml())
    assert call("distill --recipe mine.yaml --seed 2 --milestones 10 20") == 0
    assert parts.runs[0][0] == wanted.changed({"seed": 2, "milestones": (10, 20)})


@pytest.mark.parametrize(
    ("words", "resume"),
    [
        ("distill --resume there", True),
        ("distill --out there --resume", True),
        ("distill --resume there --epochs 9", True),
    ],
)
def test_resume_takes_the_recipe_of_the_run(words: str, resume: bool, parts: Parts) -> None:
    kept = named("digits").changed({"lr": 0.3})
    Path("there").mkdir()
    Path("there/recipe.yaml").write_text(kept.to_yaml())
    assert call(words) == 0
    recipe, folder, resumed = parts.runs[0]
    # A flag that changes it is passed on: the run compares, and says what changed.
    assert recipe == kept.changed({"epochs": 9} if "--epochs" in words else {})
    assert (folder, resumed) == (Path("there"), resume)


def test_a_bare_resume_goes_on_in_the_default_folder(parts: Parts) -> None:
    assert call("distill --recipe digits --resume --seed 1") == 0
    assert parts.runs[0][1:] == (Path("runs/digits-small-cnn-2-projector-seed1"), True)


def test_train_trains_a_model_alone(parts: Parts) -> None:
    assert call("train --model timm/resnet34 --data d --weights w --epochs 2") == 0
    recipe, folder, _ = parts.runs[0]
    assert recipe == Recipe(
        name="train", student="timm/resnet34", student_weights="w", data="d", method="alone", epochs=2
    )
    assert folder == Path("runs/train-timm-resnet34-alone-seed0")
    assert call("train --recipe imagenet-resnet34-resnet18 --data d") == 0
    recipe = parts.runs[1][0]
    assert (recipe.student, recipe.teacher, recipe.method) == ("torchvision/resnet18", None, "alone")
    assert (recipe.epochs, recipe.milestones, recipe.student_tap) == (100, (30, 60, 90), None)


def test_a_dry_run_prints_a_recipe_that_can_be_read_and_trains_nothing(
    parts: Parts, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call("distill --recipe digits --dry-run") == 0
    out = capsys.readouterr().out
    yaml = out[: out.index("student     small")]
    assert Recipe.from_yaml(yaml) == named("digits")
    assert "run folder  runs/digits-small-cnn-2-projector-seed0" in out
    assert parts.runs == []
    assert list(tmp_path.iterdir()) == []
    assert call("compare --recipe digits --dry-run --methods alone kd") == 0
    assert capsys.readouterr().out.startswith("# 2 methods (alone, kd), seeds 0, 1, 2, 3, 4\n")


def test_compare_prints_a_table_and_says_what_it_means(parts: Parts, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("compare --recipe digits --methods alone kd --seeds 3 --out c") == 0
    assert len(parts.runs) == 6
    assert [folder.name for _, folder, _ in parts.runs][:3] == ["alone-seed0", "kd-seed0", "alone-seed1"]
    assert Path("c") in parts.reports
    assert Path("c/kd-seed2") in parts.reports
    out = capsys.readouterr().out
    assert "top1 in % on the validation images, 3 seeds" in out
    assert "60.10 ± 0.10" in out
    assert "+10.10" in out
    assert "kd minus alone: +10.10 points of top1 (95% interval +9.85 to +10.35, 3 seeds). Zero lies outside" in out
    assert "report: c/report.html" in out
    assert max(len(row) for row in out.splitlines() if "±" in row) <= 80
    record = json.loads(Path("c/comparison.json").read_text())
    assert record["command"] == "limbeck compare --recipe digits --methods alone kd --seeds 3 --out c"


def test_compare_has_its_defaults_and_goes_on_from_its_record(parts: Parts, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("compare --recipe digits") == 0
    assert {recipe.seed for recipe, _, _ in parts.runs} == {0, 1, 2, 3, 4}
    assert {recipe.method for recipe, _, _ in parts.runs} == {"alone", "kd", "projector", "stages+kd"}
    assert call("compare --teacher a --student b --data c --methods projector --seed 7") == 0
    assert [recipe.seed for recipe, _, _ in parts.runs[20:]] == [7, 8, 9]
    parts.runs.clear()
    capsys.readouterr()
    assert call("compare --resume runs/distill-b-compare") == 0
    assert [recipe.seed for recipe, _, _ in parts.runs] == [7, 8, 9]
    assert parts.if_begun[-3:] == [True] * 3  # each continues what is there, finished or not
    assert "finished before" in capsys.readouterr().out
    assert call("compare --resume runs/distill-b-compare --epochs 3") == 2
    assert "another recipe (epochs: 100 -> 3)" in capsys.readouterr().err


def test_compare_without_a_teacher_needs_none(parts: Parts) -> None:
    assert call("compare --student b --data c --methods alone --seeds 2") == 0
    assert [recipe.teacher for recipe, _, _ in parts.runs] == [None, None]


def test_compare_is_one_process(
    parts: Parts, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert call("compare --recipe digits") == 2
    assert "compare runs as one process" in capsys.readouterr().err


def test_doctor_lists_findings_and_fails_on_an_error(parts: Parts, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("doctor --recipe digits") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[:3] == ["ok       shapes: fit", "warning  balance: uneven", "         advice: use 0.5"]
    assert out[-1] == "2 checks, 0 errors, 1 warnings"
    parts.findings.append(Finding("error", "teacher", "random"))
    assert call("doctor --recipe digits") == 1


def test_labels_with_a_file_is_a_flag_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["distill", "--teacher", "small/cnn-8", "--student", "small/cnn-4", "--data", "digits", "--dry-run"]
    for given in (["--labels", "x.csv"], ["--labels=x.csv"], ["--label-file", "x.csv"]):
        assert main([*words, *given]) == 2
        assert '--labels x.csv: only for a folder of images, got "digits"' in capsys.readouterr().err
    assert main([*words, "--labels"]) == 0


def test_evaluate_and_export_print_what_they_got(parts: Parts, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "r", "--data", "d"]) == 0
    assert capsys.readouterr().out == "top1: 50.00%\nloss: 1.2500\ndata: 1.0000\n"
    assert main(["evaluate", "--data", "d", "r"]) == 0
    capsys.readouterr()
    assert main(["export", "r", "--format", "onnx"]) == 0
    out = capsys.readouterr().out
    assert out == "onnx: student.onnx\nlargest difference to the PyTorch student's outputs: 1e-06\nopset 18\n"


def test_recipes_are_listed_and_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["recipes"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows if not row.startswith(" ")] == list(NAMED)
    assert max(map(len, rows)) <= 80
    assert main(["recipes", "imagenet-resnet34-resnet18"]) == 0
    out = capsys.readouterr().out
    assert "# Paper: table 6" in out
    assert Recipe.from_yaml(out) == named("imagenet-resnet34-resnet18").changed({})


def test_a_stop_says_how_to_go_on(parts: Parts, capsys: pytest.CaptureFixture[str]) -> None:
    parts.raises = KeyboardInterrupt()
    assert call("distill --recipe digits --out there") == 130
    assert capsys.readouterr().err == "\nlimbeck: stopped; continue with: limbeck distill --resume there\n"
    assert call("train --recipe digits --out here") == 130
    assert "limbeck train --resume here" in capsys.readouterr().err
    assert call("compare --recipe digits --out both") == 130
    assert "limbeck compare --resume both" in capsys.readouterr().err


def test_the_loss_of_a_process_has_its_own_exit_code(parts: Parts, capsys: pytest.CaptureFixture[str]) -> None:
    parts.raises = LostProcessError("process 0 cannot continue: another one of the 2 has ended")
    assert call("distill --recipe digits --out there") == 75
    assert capsys.readouterr().err == f"{LINE}process 0 cannot continue: another one of the 2 has ended\n"


def test_one_command_begins_a_run_and_goes_on_with_it(parts: Parts, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("distill --recipe digits --out there --resume-if-begun") == 0
    assert call("distill --recipe digits --out there --resume-if-begun --epochs 3") == 0
    assert call("train --recipe digits --out here") == 0
    assert parts.if_begun == [True, True, False]
    assert not any(resume for _, _, resume in parts.runs)
    assert parts.runs[1][0].epochs == 3  # the recipe is that of the flags, whatever the folder holds
    assert call("distill --recipe digits --resume there --resume-if-begun") == 2
    assert "--resume continues an existing run, --resume-if-begun also starts it" in capsys.readouterr().err
    assert call("compare --recipe digits --out both --methods alone kd --seeds 2 --resume-if-begun") == 0
    assert call("compare --recipe digits --out both --methods alone kd --seeds 2 --resume-if-begun") == 0
    assert call("compare --recipe digits --out both --methods alone kd --seeds 2") == 2


def test_a_full_disk_is_no_bug_and_a_bug_keeps_its_traceback(parts: Parts, capsys: pytest.CaptureFixture[str]) -> None:
    parts.raises = OSError(errno.ENOSPC, "No space left on device", "runs/x")
    assert call("distill --recipe digits") == 2
    assert (
        capsys.readouterr().err
        == f"{LINE}no space left on the disk at runs/x; free some, then continue with --resume\n"
    )
    parts.raises = UserError("weights do not fit: 1 missing", ["  missing fc.bias"])
    assert call("distill --recipe digits") == 2
    assert capsys.readouterr().err == f"{LINE}weights do not fit: 1 missing\n  missing fc.bias\n"
    parts.raises = PermissionError(errno.EACCES, "Permission denied", "runs/x/summary.json")
    assert call("distill --recipe digits") == 2
    assert capsys.readouterr().err == f'{LINE}"runs/x/summary.json" cannot be used: permission denied\n'
    parts.raises = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. Including non-PyTorch memory"
    )
    assert call("distill --recipe digits") == 2
    said = "CUDA out of memory. Tried to allocate 2.00 GiB"
    assert capsys.readouterr().err == (
        f"{LINE}out of memory outside of a training step; use a smaller --batch-size ({said})\n"
    )
    for bug in (RuntimeError("bug"), OSError(errno.EACCES, "no"), ValueError("bug")):
        parts.raises = bug
        with pytest.raises(type(bug)):
            call("distill --recipe digits")


def test_a_command_leaves_nothing_behind_in_its_process(capsys: pytest.CaptureFixture[str]) -> None:
    """The types of the flags were made anew by each command, and kept by tyro: 49 KB a training."""

    def types_after(epochs: int) -> int:
        words = ["distill", "--teacher", "small/cnn-32", "--student", "small/cnn-4", "--data", "digits", "--dry-run"]
        assert main([*words, "--epochs", str(epochs)]) == 0
        gc.collect()
        return sum(type(each) is type and dataclasses.is_dataclass(each) for each in gc.get_objects())

    types_after(1)
    assert len({types_after(epochs) for epochs in range(2, 5)}) == 1
    assert "epochs: 4" in capsys.readouterr().out


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["-h"], ["--help"], ["help"]):
        assert main(words) == 0
        out = capsys.readouterr().out
        assert out.startswith("usage: limbeck COMMAND [flags]")
        assert max(len(row) for row in out.splitlines()) <= 80


def test_only_the_first_process_speaks(
    parts: Parts, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert call("distill --recipe digits") == 0
    assert capsys.readouterr().out == ""
    assert parts.reports == []
    assert len(parts.runs) == 1
