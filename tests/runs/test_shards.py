"""A recipe with ``--shard``: what it refuses, and real processes, started by ``torchrun`` as a user starts them."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import test_torchrun
from limbeck.errors import UserError
from limbeck.recipes.recipe import Recipe
from limbeck.storage.files import load_weights
from tiny import same_bytes

EPOCHS, STEPS = 2, 25
COMMON = f"""--data digits --train-limit {20 * STEPS} --batch-size 20 --precision float32 --memory-format contiguous
    --device cpu --probe off --resume-if-begun""".split()
TEACHER = ["train", "--model", "small/cnn-8", "--epochs", "2", *COMMON]
FLAGS = ["distill", "--student", "small/cnn-2", "--teacher", "small/cnn-8", "--method", "projector+kd", *COMMON]
FLAGS += ["--epochs", str(EPOCHS), "--ema", "0.9", "--clip", "5", "--sync-batch-norm", "--optimizer", "adamw"]


def figures(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "run"
    with test_torchrun.launched(folder, flags=TEACHER, count=1) as process:
        done = test_torchrun.ended(process, folder)
    assert done.code == 0, done.said
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Path:
    """The run on one process, without shards."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    with test_torchrun.launched(folder, "--teacher-weights", str(teacher), flags=FLAGS, count=1) as process:
        done = test_torchrun.ended(process, folder)
    assert done.code == 0, done.said
    return folder


def assert_like(folder: Path, alone: Path) -> None:
    """To the rounding of float32, which 80 steps have magnified; and the teacher, to the byte."""
    for name in ("student", "student_best", "terms"):
        found, expected = (load_weights(place / f"{name}.safetensors") for place in (folder, alone))
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.allclose(found[key], value, rtol=1e-3, atol=1e-3), f"{name}: {key}"
    ours, theirs = figures(folder), figures(alone)
    assert ours["origins"]["teacher"]["digest"] == theirs["origins"]["teacher"]["digest"]
    assert ours["teacher"] == pytest.approx(theirs["teacher"], rel=1e-5)
    assert ours["parameters"] == theirs["parameters"]
    assert ours["last"] == pytest.approx(theirs["last"], rel=0.02)


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Path:
    """The run on two processes, in shares."""
    folder = tmp_path_factory.mktemp("shares") / "run"
    with test_torchrun.launched(folder, "--teacher-weights", str(teacher), "--shard", flags=FLAGS) as process:
        done = test_torchrun.ended(process, folder)
    assert done.code == 0, done.said
    return folder


@pytest.mark.long  # three commands under torchrun; tests/distributed/test_sharding.py has the trainings
@pytest.mark.timeout(600)
@pytest.mark.processes
def test_two_processes_in_shares_end_as_one(shares: Path, alone: Path) -> None:
    assert figures(shares)["machine"]["processes"] == 2
    assert_like(shares, alone)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.processes
def test_a_run_in_shares_that_lost_a_process_comes_back_to_the_same_bytes(
    tmp_path: Path, teacher: Path, shares: Path
) -> None:
    folder = tmp_path / "run"
    more = ("--teacher-weights", str(teacher), "--shard")
    with test_torchrun.launched(folder, *more, flags=FLAGS, restarts=1) as process:
        test_torchrun.when(lambda: any(step > STEPS for step in test_torchrun.steps(folder)), process)
        test_torchrun.worker(process, 1).send_signal(signal.SIGKILL)
        done = test_torchrun.ended(process, folder)
    assert done.code == 0, done.said
    assert "process 0 cannot continue: another one of the 2 has ended" in done.said
    assert "continuing from the end of epoch 1" in done.said
    for name in ("student", "student_best", "terms"):
        found, expected = (load_weights(place / f"{name}.safetensors") for place in (folder, shares))
        assert same_bytes(found, expected), name


@pytest.mark.timeout(600)
@pytest.mark.processes
@pytest.mark.long
def test_a_run_that_is_stopped_goes_on_without_shards(tmp_path: Path, teacher: Path, alone: Path) -> None:
    folder = tmp_path / "run"
    weights = ("--teacher-weights", str(teacher))
    with test_torchrun.launched(folder, *weights, "--shard", flags=FLAGS) as process:
        test_torchrun.when(lambda: any(step > 10 for step in test_torchrun.steps(folder)), process)
        test_torchrun.worker(process, 1).send_signal(signal.SIGTERM)
        done = test_torchrun.ended(process, folder)
    assert "stopped by SIGTERM after step" in done.said
    with test_torchrun.launched(folder, *weights, "--no-shard", flags=FLAGS, count=1) as process:
        done = test_torchrun.ended(process, folder)
    assert done.code == 0, done.said
    assert "continuing from " in done.said
    assert_like(folder, alone)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"precision": "fp16"}, "precision: with shard expected auto, bf16 or float32"),
        ({"accumulate": 2}, "accumulate: with shard expected 1"),
        ({"cache_views": 1}, "cache_views: with shard expected none"),
        ({"probe": 50}, "probe: with shard expected auto or off"),
        ({"memory_format": "channels_last"}, "memory_format: with shard expected auto or contiguous"),
        ({"compile": "on"}, "compile: with shard expected auto or off"),
        (
            {"task": "detection", "student": "fcos/timm/resnet18", "method": "alone", "teacher": None},
            "task: with shard expected classification",
        ),
    ],
)
def test_what_cannot_be_combined_is_one_line(changes: dict[str, Any], said: str) -> None:
    settings: dict[str, Any] = {"data": "digits", "student": "small/cnn-2", "teacher": "small/cnn-8"}
    assert Recipe(**settings, shard=True).probes is False
    assert Recipe(**settings).probes is True
    with pytest.raises(UserError) as raised:
        Recipe(**{**settings, **changes}, shard=True)
    assert str(raised.value).startswith(said)
    assert "\n" not in str(raised.value)
