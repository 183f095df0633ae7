"""What only looks at a run ends nothing: each part is made to fail, and the run has its student."""

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from limbeck.cli import main
from limbeck.diagnostics import Probe, fixed_point, input_rules, verdict
from limbeck.diagnostics import probe as probe_module
from limbeck.errors import UserError
from limbeck.recipes import run as run_module
from limbeck.recipes.claim import claim
from limbeck.recipes.recipe import Recipe
from limbeck.recipes.run import run
from limbeck.report import run as report_module
from limbeck.report import write_report
from limbeck.runlog import RunLog


def fail(*given: Any, **named: Any) -> Any:
    raise torch.linalg.LinAlgError("did not converge\nat all")


def notes(folder: Path) -> list[str]:
    return [record["text"] for record in tiny.records(folder) if record["kind"] == "note"]


REASON = "failed, the run continues (_LinAlgError: did not converge)"


def test_a_run_has_its_student_whatever_of_its_looks_fails(
    small: Recipe, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    given = small.changed({"teacher_weights": str(next((finished.parent / "teachers").iterdir())), "epochs": 1})
    (tmp_path / "recipe.yaml").write_text(given.to_yaml())
    for name in ("record_checks", "Disagreements", "drawn_boxes"):
        monkeypatch.setattr(run_module, name, fail)
    seen: list[bool] = []

    def look(self: Probe, batch: Any, step: int, epoch: float) -> Any:
        seen.append((folder / "student.safetensors").is_file())
        fail()

    monkeypatch.setattr(Probe, "_look", look)
    monkeypatch.setattr(report_module, "title", fail)
    monkeypatch.setattr("limbeck.diagnostics.verdict.verdicts", fail)
    assert main(["distill", "--recipe", str(tmp_path / "recipe.yaml"), "--out", str(folder)]) == 0
    assert seen[0] is False
    assert seen[-1] is True  # the student is written before the last look
    assert (folder / "summary.json").is_file()
    wanted = ["the check of images and inputs", "the choice of samples.json", "the probe", "boxes.json"]
    found = [note for note in notes(folder) if note.startswith("warning: ") and REASON in note]
    assert found == [f"warning: {what} {REASON}" for what in wanted]
    shown = capfd.readouterr()
    assert f"warning: the report of {folder} failed (_LinAlgError: did not converge)" in shown.err
    assert "warning: the verdict failed (_LinAlgError: did not converge)" in shown.err
    assert f"student: {folder / 'student.safetensors'}" in shown.out


def test_a_probe_that_cannot_be_made_costs_the_probe(
    small: Recipe, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For instance since three images are left to look at."""
    monkeypatch.setattr(
        run_module, "build_probe", lambda *_: (_ for _ in ()).throw(UserError("the batch has 3 images"))
    )
    given = small.changed({"method": "alone", "teacher": None, "epochs": 1})
    run(given, tmp_path)
    assert "warning: the probe failed, the run continues (the batch has 3 images)" in notes(tmp_path)


@pytest.mark.parametrize("part", ["record_feature_term", "record_balance", "record_outputs", "record_soundness"])
def test_each_part_of_a_look_may_fail(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module, part, fail)
    subject = tiny.distiller()
    before = {name: value.clone() for name, value in subject.state_dict().items()}
    with RunLog(tmp_path, progress=False) as log:
        probe = Probe(subject, tiny.Batch(*tiny.images(8, seed=9)), every=1, log=log)
        found = [probe(step, 0.0) for step in range(3)]
    assert tiny.same_bytes(before, subject.state_dict())
    of = {"record_feature_term": "the probe of feature", "record_soundness": "the probe's look at the teacher"}
    assert notes(tmp_path) == [f"warning: {of.get(part, 'the probe')} {REASON}"]  # once, not at every step
    if part == "record_feature_term":  # the rest of the look is there
        assert all(record is not None and "balance" in record for record in found)
    else:
        assert found == [None] * 3


def test_the_fixed_point_of_a_feature_with_dead_channels() -> None:
    """Float32 does not converge there on some machines, and float64 does: it is the one that is asked."""
    torch.manual_seed(0)
    rows = torch.randn(64, 40, dtype=torch.float64)
    rows[:, 5:] *= 1e-22
    c_s, c_st = rows.T @ rows, rows.T @ rows[:, :2]
    found = fixed_point(c_s.float(), c_st.float())
    assert found.dtype == torch.float32
    assert torch.allclose(found[:5], torch.eye(5, 2), atol=1e-5)


def test_the_decomposition_is_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.dtype] = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda c: (asked.append(c.dtype), eigh(c))[1])
    assert fixed_point(torch.eye(3), torch.eye(3)).dtype == torch.float32
    assert asked == [torch.float64]


def test_a_rule_that_fails_is_told_and_the_others_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "RULES", (fail, input_rules.leaking_data))
    found = verdict.verdicts([{"kind": "data", "val": 500, "leaked": 50}])
    assert [each.name for each in found] == ["rule-failed", "leaking-data"]
    assert found[0].seen == "_LinAlgError: did not converge."


def test_figures_that_cannot_be_drawn_cost_their_section(finished: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(report_module, "main_curves", fail)
    page = write_report(finished, tmp_path / "page.html").read_text()
    assert "the figures of &#34;Curves&#34; could not be drawn (_LinAlgError: did not converge)" in page
    assert "Balance of the loss" in page


def test_what_does_not_decide_the_student_may_change_on_resume(small: Recipe, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(small.to_yaml())
    changes = {"probe": "off", "probe_images": 8, "workers": 3, "checkpoint_every": 5, "cache_limit": 2.0}
    changed = small.changed({**changes, "loggers": ("tensorboard",)})
    assert claim(changed, tmp_path, resume=True) == changed
