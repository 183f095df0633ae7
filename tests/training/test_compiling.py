"""Compiled and plain terms and distillers agree; a compiler that fails is one line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from limbeck.errors import UserError
from limbeck.features.taps import Taps
from limbeck.training.compiling import explaining, measure_compiling
from limbeck.training.precision import Arithmetic

TESTS = Path(__file__).parent.parent
CPU = torch.device("cpu")


def lines_of(worker: str, *words: str) -> list[Any]:
    """What a worker prints, in a process that does not have the shape checks of the tests."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)])}
    command = [sys.executable, str(TESTS / worker), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("backend", "cells", "count"),
    [
        # What the passes over a graph can spoil: the autocast of its backward pass, buffers that it writes.
        ("aot_eager", ["quick"], 5),
        # What the reading of the program can.
        pytest.param("eager", ["rest"], 38, marks=pytest.mark.long),
        pytest.param("aot_eager", [], 67, marks=pytest.mark.long),
        pytest.param("inductor", [], 174, marks=[pytest.mark.long, pytest.mark.timeout(7200)]),
    ],
)
def test_two_steps_leave_what_they_leave_without_the_compiler(backend: str, cells: list[str], count: int) -> None:
    """Loss, readings, all gradients and buffers of every term, in float32 and under autocast; the second is smaller."""
    found = lines_of("compiled_worker.py", backend, *cells)
    assert len(found) == count
    assert {name: wrong for name, wrong, _ in found if wrong is not None} == {}


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["cnn", "vit", "dropout"])
def test_loss_gradient_features_and_buffers_are_those_of_the_plain_step(kind: str) -> None:
    found = lines_of("compile_worker.py", kind)[-1]
    assert found["apart"] < 1e-3  # of the largest element of each tensor, after up to six batches
    assert found["scores"][0] == pytest.approx(found["scores"][2], rel=1e-4)  # student and its twin
    assert found["scores"][0] == found["scores"][1]  # an average of one
    assert found["scores"][3] == pytest.approx(found["scores"][4], rel=1e-4)  # the terms on unseen images
    assert found["compiled in evaluation"] == 0
    assert found["same names"]
    assert found["copies are plain"]
    assert found["hooks left"] == 0
    assert not found["drew"]
    parts = 1 if kind == "dropout" else 4  # student, teacher, two terms
    # Batches of 8, 8, 5, 8, 7 and 3: compiled for 8, once more for any number, and then no more.
    assert found["compiled"] == ([parts, 0] if kind == "dropout" else [parts, 0, parts, 0, 0, 0])


def test_a_broken_tap_is_found_before_anything_is_compiled() -> None:
    class InPlace(tiny.Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(torch.relu_(self.conv2(torch.relu(self.conv1(x)))).mean((2, 3)))

    distiller = tiny.distiller()
    distiller.student = InPlace(4)
    distiller._student_taps = Taps(distiller.student, ["conv2", "fc:input"])
    with pytest.raises(UserError, match='"conv2" was overwritten in place'):
        distiller.compile_parts(tiny.Batch(*tiny.images(4)))
    assert distiller.compiled == {}


def test_the_compilers_error_is_one_line() -> None:
    from torch._dynamo.exc import TorchDynamoException

    with pytest.raises(UserError, match=r"torch\.compile: no compiler; use --compile off"), explaining():
        raise TorchDynamoException("backend failed") from RuntimeError("\nno compiler\nSet TORCHDYNAMO_VERBOSE=1")
    with pytest.raises(UserError, match=r"torch\.compile: TorchDynamoException; use"), explaining():
        raise TorchDynamoException
    with pytest.raises(RuntimeError, match="another"), explaining():
        raise RuntimeError("another")


def test_measuring_compares_the_step_before_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    distiller = tiny.distiller()
    order: list[str] = []
    monkeypatch.setattr(type(distiller), "compile_parts", lambda self, batch: order.append("compiled"))
    times = iter([3.0, 2.0, 4.0, 5.0, 6.0, 40.0, 1.0, 0.5, 1.0, 1.0, 1.0])

    def timed(step: Any, device: torch.device) -> float:
        order.append("timed")
        return next(times)

    monkeypatch.setattr("limbeck.training.compiling.timed", timed)
    chosen = Arithmetic("float32", "contiguous", False, "")
    cost = measure_compiling(distiller, tiny.Batch(*tiny.images(4)), chosen, CPU)
    assert (cost.plain, cost.start, cost.step) == (2.0, 40.0, 0.5)
    assert order == ["timed"] * 5 + ["compiled"] + ["timed"] * 6
