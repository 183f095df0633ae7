"""The preflight finds the faults that peers train through."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from limbeck import models
from limbeck.assembly.build import build_data, build_optimizer, build_parts
from limbeck.assembly.tasks import Parts
from limbeck.recipes.recipe import Recipe
from limbeck.runs.inspection import check
from limbeck.runs.preflight import Finding, _check_balance, preflight

CPU = torch.device("cpu")


@pytest.fixture
def parts(small: Recipe, finished: Path) -> Parts:
    weights = str(next((finished.parent / "teachers").iterdir()))
    recipe = small.changed({"teacher_weights": weights})
    data = build_data(recipe)
    teacher = models.build("small/cnn-4", num_classes=10, size=8, weights=weights)
    return build_parts(recipe, data, teacher)


def found(parts: Parts) -> dict[str, Finding]:
    checked = preflight(parts, build_optimizer(parts.recipe, parts.distiller), CPU)
    return {finding.name: finding for finding in checked.findings}


def test_a_healthy_run_has_no_warning(parts: Parts) -> None:
    findings = found(parts)
    assert {finding.level for finding in findings.values()} == {"ok"}
    assert {"teacher accuracy", "label map", "gradients", "losses at step 0", "balance"} <= set(findings)


def test_it_changes_nothing(parts: Parts) -> None:
    before = {name: value.clone() for name, value in parts.distiller.state_dict().items()}
    state = torch.get_rng_state()
    found(parts)
    assert all(torch.equal(value, before[name]) for name, value in parts.distiller.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in parts.distiller.parameters())


def test_a_random_teacher_is_an_error(parts: Parts) -> None:
    assert parts.teacher is not None
    torch.nn.init.zeros_(list(parts.teacher.module.parameters())[-1])
    torch.nn.init.zeros_(list(parts.teacher.module.parameters())[-2])
    finding = found(parts)["teacher accuracy"]
    assert finding.level == "error"
    assert "no better than guessing" in finding.message


def test_a_nan_in_the_teacher_is_an_error(parts: Parts) -> None:
    assert parts.teacher is not None
    torch.nn.init.constant_(next(parts.teacher.module.parameters()), float("nan"))
    finding = found(parts)["losses"]
    assert finding.level == "error"
    assert "feature" in finding.message


def test_logits_may_pull_harder_where_a_new_head_was_fitted_first(parts: Parts) -> None:
    """Which leaves the task little gradient; a student whose head came with its weights is warned at a tenth of it."""
    message = found(parts)["balance"].message
    pull = {name: float(value) for name, value in re.findall(r"(task|logit) (\S+?)(?:,|$)", message)}
    parts.distiller.weights["logit"] = 4.0 * 40 * pull["task"] / pull["logit"]
    for new_head, level in ((True, "ok"), (False, "warning")):
        student = replace(parts.student, weights="hub", new_head=new_head)
        assert found(replace(parts, student=student))["balance"].level == level


def test_a_weight_that_drowns_the_task_is_a_warning(parts: Parts) -> None:
    """One that pulls a hundred times as hard at first is none: it was the best of its table."""
    parts.distiller.weights["feature"] = 1e4
    finding = found(parts)["balance"]
    assert finding.level == "warning"
    assert finding.advice.startswith("feature pulls ")
    assert "limbeck compare --methods alone METHOD" in finding.advice
    ratio = float(finding.advice.split()[2])
    parts.distiller.weights["feature"] = 1e4 * 100 / ratio
    assert found(parts)["balance"].level == "ok"
    parts.distiller.weights["feature"] = 1e4 / 50 / ratio
    assert found(parts)["balance"].level == "warning"


def test_logits_that_dominate_a_student_with_weights_are_a_warning() -> None:
    """18 times as hard: such a run ended at 7%, and the student alone at 19%. A fresh student bears it."""
    norms, weights = {"task": 32.7, "logit": 36.3}, {"task": 1.0, "logit": 16.0}
    (finding,) = _check_balance(norms, weights, 200.0, 10.0)
    assert finding.level == "warning"
    assert finding.advice.startswith(
        "logit pulls 18 times as hard as task; such runs have ended below the student alone"
    )
    assert [each.level for each in _check_balance(norms, weights, 200.0, 200.0)] == ["ok"]


def test_a_frozen_trunk_is_advised_no_weight() -> None:
    """It was advised one of 8e+30."""
    (finding,) = _check_balance({"task": 0.3, "feature": 0.0}, {"task": 1.0, "feature": 8.0}, 100.0, 100.0)
    assert finding.level == "warning"
    assert "feature gives the student no gradient, whatever its weight" in finding.advice
    (finding,) = _check_balance(
        {"task": 0.0, "feature": 0.1, "logit": 0.2}, dict.fromkeys(("task", "feature", "logit"), 1.0), 100.0, 100.0
    )
    assert finding.advice == "task gives the student no gradient, whatever its weight: nothing before it trains"


def test_what_a_model_had_to_be_made_to_fit_is_said(parts: Parts) -> None:
    told = replace(parts, student=replace(parts.student, notes=("it returns a dict",)))
    assert (found(told)["student"].level, found(told)["student"].message) == ("note", "it returns a dict")


def test_a_frozen_projector_is_an_error_where_something_else_forgot_it(parts: Parts) -> None:
    optimizer = torch.optim.SGD(parts.distiller.student.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"not in the optimizer: terms\.feature\.projector"):
        preflight(parts, optimizer, CPU)


def test_classes_in_another_order_are_an_error(parts: Parts, tmp_path: Path) -> None:
    card = Path(parts.recipe.teacher_weights or "") / "student.json"
    text = card.read_text()
    try:
        card.write_text(text.replace('"0"', '"zero"', 1))
        finding = found(parts)["label map"]
    finally:
        card.write_text(text)
    assert finding.level == "error"
    assert 'class 0 is "0" here and "zero" there' in finding.message


def test_doctor_trains_nothing(small: Recipe, finished: Path, tmp_path: Path) -> None:
    fresh = {finding.name: finding for finding in check(small, tmp_path / "run")}
    assert fresh["teacher weights"].level == "note"
    assert "first trains it, for 2 epochs" in fresh["teacher weights"].message
    assert "teacher accuracy" not in fresh
    assert fresh["gradients"].level == "ok"
    assert list(tmp_path.iterdir()) == []
    beside = {finding.name: finding for finding in check(small, finished.parent / "another")}
    assert beside["teacher accuracy"].level == "ok"
