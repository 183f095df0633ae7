"""Every loop trains the pair that it is said to train, and the command prints and writes what was measured."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from limbeck import models
from limbeck.benchmark import benchmark
from limbeck.benchmark.peers import TIMM, TIMM_FAST, TORCHDISTILL, peers, timm_task, torchdistill_box, torchdistill_srd
from limbeck.benchmark.run import ALONE, ALONE_FLOOR, FLOOR, FULL, GIVEN, WRITTEN
from limbeck.cli import main
from limbeck.errors import UserError
from limbeck.recipes.recipe import Recipe

needs_torchdistill = pytest.mark.skipif(
    importlib.util.find_spec("torchdistill") is None, reason="torchdistill is not installed (extra bench)"
)
TINY = {"teacher": "small/cnn-4", "student": "small/cnn-2", "size": 8, "batch_size": 4, "device": "cpu"}


def pair(student: str, teacher: str, size: int):
    return [models.build(name, num_classes=5, size=size) for name in (student, teacher)]


def batch(size: int):
    return torch.rand(4, 3, size, size), torch.randint(5, (4,))


def test_all_of_our_loops_are_timed_against_their_floors(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("limbeck.benchmark.timing.CHUNK_SECONDS", 0.001)
    said, rounds = [], []
    recipe = Recipe(data="random", method="projector+kd", **TINY)
    result = benchmark(
        recipe, classes=5, rounds=2, with_peers=False, say=said.append, on_round=lambda *n: rounds.append(n)
    )
    assert set(result.timings) == {FLOOR, FULL, WRITTEN}
    assert set(result.alone) == {ALONE_FLOOR, ALONE, GIVEN}
    assert all(timing.seconds > 0 for timing in (*result.timings.values(), *result.alone.values()))
    assert rounds[-1] == (5, 5)
    assert set(result.by_hand) >= {"float32 contiguous", "float32 channels_last"}
    assert result.settings["floor"] == min(result.by_hand, key=lambda name: result.by_hand[name])
    assert f"floor: {result.settings['floor']}, the quickest by hand" in result.table()
    assert len(said) == 1
    assert result.settings["precision"] in said[0]


def test_a_recipe_without_a_teacher_is_refused():
    recipe = Recipe(data="random", method="alone", student="small/cnn-2")
    with pytest.raises(UserError, match="needs --teacher and --student"):
        benchmark(recipe, classes=5, rounds=1, with_peers=False, say=print, on_round=lambda *n: None)


def test_a_peer_that_cannot_take_a_pair_is_left_out_with_the_reason():
    said: list[str] = []
    found = peers(*pair("small/cnn-2", "small/cnn-4", 8), say=said.append)
    assert set(found) <= {TORCHDISTILL}
    assert f"{TIMM}: skipped: small/cnn-2 is not a model of timm" in said
    assert f"{TIMM_FAST}: skipped: small/cnn-2 is not a model of timm" in said


def test_timm_trains_its_projection_and_a_copy_of_the_student():
    student, teacher = pair("timm/test_resnet", "timm/test_vit", 160)
    before = {name: value.clone() for name, value in student.module.state_dict().items()}
    for fast in (False, True):
        timm_task(student, teacher, fast=fast)(*batch(160))
    assert all(torch.equal(value, before[name]) for name, value in student.module.state_dict().items())


@needs_torchdistill
@pytest.mark.parametrize(
    ("student", "teacher", "size"),
    [("small/cnn-2", "small/cnn-4", 8), ("timm/test_vit", "timm/test_resnet", 160)],
)
def test_torchdistill_trains_its_projector_between_the_last_maps(student: str, teacher: str, size: int):
    box = torchdistill_box(*pair(student, teacher, size))
    before = box.student_model.linear.weight.detach().clone()
    assert before.shape == (box.teacher_model.norm_layer.num_features, box.student_model.linear.in_features)
    box.post_forward_process(loss=box.forward_process(*batch(size), {}))
    assert not torch.equal(box.student_model.linear.weight, before)


@needs_torchdistill
def test_torchdistill_runs_in_its_loop():
    step, first = torchdistill_srd(*pair("small/cnn-2", "small/cnn-4", 8)), batch(8)
    for _ in range(3):
        step(*first)


def test_the_command_prints_the_ratios_and_writes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("limbeck.benchmark.timing.CHUNK_SECONDS", 0.001)
    out = tmp_path / "figures.json"
    words = [word for name, value in TINY.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert main(["benchmark", *words, "--rounds", "1", "--no-peers", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    record = json.loads(out.read_text())
    for name, timing in record["against the floor"].items():
        assert any(line.startswith(name) and f"{timing['ratio']:.3f}" in line for line in printed.splitlines())
    assert record["settings"]["student"] == "small/cnn-2"
    assert main(["benchmark", *words, "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--student", "small/cnn-2"], "teacher"),
        (["--teacher", "small/cnn-4", "--student", "small/cnn-2", "--rounds", "0"], "--rounds"),
        (["--teacher", "small/cnn-4", "--student", "small/cnn-2", "--method", "crd"], "needs images"),
    ],
)
def test_wrong_flags_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["benchmark", *words]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert message in errors[-1]
