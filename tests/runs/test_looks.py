"""What only looks at a run ends nothing: each part is made to fail, and the run has its student."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from limbeck.assembly import probing
from limbeck.assembly.classification import KIND
from limbeck.cli import main
from limbeck.diagnostics import Probe, fixed_point, fixed_point_distances
from limbeck.diagnostics import probe as probe_module
from limbeck.diagnostics.probe_terms import record_dynamics
from limbeck.errors import UserError
from limbeck.logs.runlog import RunLog
from limbeck.recipes.recipe import Recipe
from limbeck.report import input_rules, verdict, write_report
from limbeck.report import run as report_module
from limbeck.runs import run as run_module
from limbeck.runs.claim import claim
from limbeck.runs.run import run
from limbeck.terms import Sides


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
    kind = replace(KIND, record_checks=fail, find_samples=lambda *_: fail)
    monkeypatch.setattr(run_module, "kind_of", lambda task: kind)
    seen: list[bool] = []

    def look(self: Probe, batch: Any, step: int, epoch: float) -> Any:
        seen.append((folder / "student.safetensors").is_file())
        fail()

    monkeypatch.setattr(Probe, "_look", look)
    monkeypatch.setattr(report_module, "title", fail)
    monkeypatch.setattr("limbeck.report.verdict.verdicts", fail)
    assert main(["distill", "--recipe", str(tmp_path / "recipe.yaml"), "--out", str(folder)]) == 0
    assert seen[0] is False
    assert seen[-1] is True  # the student is written before the last look
    assert (folder / "summary.json").is_file()
    wanted = ["the check of images and inputs", "the probe", "samples.json"]
    found = [note for note in notes(folder) if note.startswith("warning: ") and REASON in note]
    assert found == [f"warning: {what} {REASON}" for what in wanted]
    shown = capfd.readouterr()
    assert f"warning: the report of {folder} failed (_LinAlgError: did not converge)" in shown.err
    assert "warning: the verdict failed (_LinAlgError: did not converge)" in shown.err
    assert f"student: {folder / 'student.safetensors'}" in shown.out


def test_a_probe_or_samples_that_cannot_be_made_cost_no_more(
    small: Recipe, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For instance since three images are left to look at."""

    def refuse(*_: object) -> Any:
        raise UserError("the batch has 3 images")

    kind = replace(KIND, build_probe=refuse, find_samples=refuse)
    monkeypatch.setattr(run_module, "kind_of", lambda task: kind)
    given = small.changed({"method": "alone", "teacher": None, "epochs": 1})
    run(given, tmp_path)
    for what in ("the probe", "the choice of samples.json"):
        assert f"warning: {what} failed, the run continues (the batch has 3 images)" in notes(tmp_path)


@pytest.mark.parametrize("part", ["record_feature_term", "record_balance", "record_outputs", "record_soundness"])
def test_each_part_of_a_look_may_fail(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module, part, fail)
    subject = tiny.distiller()
    before = {name: value.clone() for name, value in subject.state_dict().items()}
    with RunLog(tmp_path, progress=False) as log:
        probe = Probe(subject, tiny.Batch(*tiny.images(8, seed=9)), every=1, log=log)
        found = [probe(step, 0.0) for step in range(3)]
    assert tiny.same_bytes(before, subject.state_dict())
    of = {"record_feature_term": "the probe of feature", "record_soundness": "the probe's measurement of the teacher"}
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
    changes = {"probe": "off", "workers": 3, "checkpoint_every": 5}
    changed = small.changed({**changes, "loggers": ("tensorboard",)})
    assert claim(changed, tmp_path, resume=True) == changed


@pytest.mark.parametrize(
    ("step", "steps", "probe", "longest", "images"),
    [
        (0.4, 1000, "auto", 2.0, 32),  # 400 s: looks of 2 s, in which 5 passes of 50 images take 0.4 s each
        (0.4, 10_000, "auto", 20.0, 128),
        (0.4, 60, "auto", 1.0, 16),  # 24 s: two seconds for both looks, in which there would be time for 25
        (4.0, 60, "auto", 1.2, 8),  # never fewer
        (0.0, 60, "auto", 1.0, 128),
        (0.4, 60, 20, math.inf, 128),  # asked for, whatever it costs
    ],
)
def test_the_probe_measures_as_many_images_as_fit_into_its_share(
    step: float, steps: int, probe: Any, longest: float, images: int, small: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "LEAST_SECONDS", 2.0)
    recipe = small.changed({"batch_size": 50, "probe": probe})
    found = probing.within_budget(recipe, 2, step=step, steps=steps)
    assert found == (pytest.approx(longest), images)


def test_a_resumed_run_measures_the_same_images_and_not_the_teacher_again(tmp_path: Path) -> None:
    held_back = tiny.Batch(*tiny.images(8, seed=9))
    for step in (0, 3):
        with RunLog(tmp_path, progress=False) as log:
            assert probing.measured_before(log) == (8 if step else None)
            Probe(tiny.distiller(), held_back, every=1, log=log)(step, 0.0)
    found = [record for record in tiny.records(tmp_path) if record["kind"] == "probe"]
    assert [record["step"] for record in found] == [0, 3]
    assert ["teacher" in record for record in found] == [True, False]


def test_terms_and_spectra_that_a_look_has_no_time_for_are_left_out_and_named(tmp_path: Path) -> None:
    subject = tiny.distiller()
    with RunLog(tmp_path, progress=False) as log:
        probe = Probe(subject, tiny.Batch(*tiny.images(8, seed=9)), every=1, log=log, longest=1e-9)
        found = [probe(step, 0.0) for step in range(2)]
    first = next(iter(subject.terms))
    for record in found:
        assert record is not None
        assert list(record["terms"]) == [first]
        assert "fit" in record["terms"][first]
        assert "spectrum" not in record["terms"][first]
    late = ", ".join(list(subject.terms)[1:])
    assert len(notes(tmp_path)) == 1
    assert notes(tmp_path)[0].startswith("the probe leaves out the spectrum of " + first)
    assert late in notes(tmp_path)[0]


def test_distances_from_few_rows_are_those_of_the_whole_relation() -> None:
    """Fewer rows than channels: what is decomposed is as small as the rows, and the figures are the same."""
    torch.manual_seed(0)
    term = tiny.feature_term(12, 6)
    term.projector = torch.nn.Linear(12, 6, bias=False)
    z, other = torch.randn(5, 12), torch.randn(5, 6)
    sides = Sides(*[{"source": z, "student": z}.get(name, other) for name in Sides._fields])
    w = term.projector.weight.detach().T
    found = record_dynamics(term, sides, w, w_0=w, before=None, forces=None)
    rows = (z - z.mean(0)).double()
    target = (other - other.mean(0)).double()
    distances = fixed_point_distances(w.double(), rows.T @ rows, rows.T @ target, ridge=0.0)
    assert float(found["whitened"]) == pytest.approx(float(distances.whitened.outputs), abs=1e-6)
    assert float(found["least_squares"]) == pytest.approx(float(distances.least_squares.outputs), abs=1e-6)
