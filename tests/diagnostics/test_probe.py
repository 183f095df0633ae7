"""The probe: what it measures is what it says, when it looks, and that a training does not notice."""

import copy
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import probe_worker
import probed
import spawned
import tiny
from limbeck import Distiller, FeatureTerm, LogitTerm, losses, norms, projectors
from limbeck.diagnostics import Probe, cka, column_normalized
from limbeck.diagnostics import probe as probe_module
from limbeck.diagnostics.probe_projectors import matrix, quick_singular_values, record_spectrum
from limbeck.diagnostics.probe_terms import plain
from limbeck.diagnostics.quiet import batch_statistics, undisturbed
from limbeck.errors import UserError
from limbeck.features import pooling
from limbeck.features.taps import Taps
from limbeck.logs.runlog import RunLog
from limbeck.tasks import Classification, LabelFree
from limbeck.terms import LossForm, RelationTerm
from limbeck.training import optim

CPU = torch.device("cpu")
TESTS = Path(__file__).parent.parent


def batch(count: int = 32, *, labels: bool = True) -> tiny.Batch:
    x, target = tiny.images(count, seed=9)
    return tiny.Batch(x, target if labels else None)


def with_term(term: Any, *, task: Any = None, student: nn.Module | None = None) -> Distiller:
    torch.manual_seed(0)
    student = student if student is not None else tiny.Net(4)
    return Distiller(student, tiny.Net(6), task or Classification(), terms={"feature": term})


def term(projector: nn.Module, **more: Any) -> FeatureTerm:
    more = {"student_norm": norms.BatchNorm(6), "teacher_norm": norms.BatchNorm(6), "loss": losses.log_sum} | more
    return FeatureTerm("fc:input", "fc:input", projector=projector, **more)


def look(subject: Distiller, held_back: Any = None, **more: Any) -> dict[str, Any]:
    record = Probe(subject, held_back if held_back is not None else batch(), **more).run(0, 0.0)
    assert record is not None
    return record


def timeless(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


# A training does not notice


@pytest.mark.parametrize(
    "more",
    [{}, {"precision": torch.bfloat16}, {"accumulate": 3}, {"ema_decay": None, "clip": None}],
    ids=["float32", "bf16", "accumulated", "plain"],
)
def test_the_bytes_of_a_training_are_those_without_a_probe(more: dict[str, Any]) -> None:
    """Student, average, projector, banks, momentum and random state; the terms draw random numbers when looked at."""
    without, every_step = probed.train(every=0, **more), probed.train(every=1, **more)
    assert tiny.same_bytes(without.state, every_step.state)
    assert without.result.counters.step == every_step.result.counters.step
    assert every_step.probe is not None
    assert len(every_step.probe.records) == every_step.result.counters.step + 1
    budgeted = probed.train(every=None, **more)
    assert tiny.same_bytes(without.state, budgeted.state)


def test_modes_gradients_readings_buffers_and_random_numbers_are_left_alone() -> None:
    subject = probed.distiller()
    subject.train()
    subject.student.get_submodule("norm").eval()  # frozen by its user
    subject(next(iter(probed.Loader()))).loss.backward()
    modes = [module.training for module in subject.modules()]
    gradients = [p.grad for p in subject.parameters()]
    readings = {name: dict(each.readings) for name, each in subject.terms.items()}
    before = copy.deepcopy(subject.state_dict())
    state = torch.get_rng_state()
    record = look(subject, probed.held_back(), every=1)
    assert {"feature", "crd", "review"} <= set(record["balance"]["norms"])
    assert [module.training for module in subject.modules()] == modes
    assert all(a is b for a, b in zip(gradients, [p.grad for p in subject.parameters()], strict=True))
    assert readings == {name: dict(each.readings) for name, each in subject.terms.items()}
    assert tiny.same_bytes(before, subject.state_dict())
    assert torch.equal(state, torch.get_rng_state())


def test_two_looks_at_one_state_see_the_same() -> None:
    """Also of terms that draw negatives."""
    subject = probed.distiller()
    probe = Probe(subject, probed.held_back())
    first = probe.run(0, 0.0)
    torch.rand(7)
    again = probe.run(1, 0.0)
    assert first is not None
    assert again is not None
    assert first["balance"] == again["balance"]
    assert again["terms"]["feature"]["dynamics"].pop("step_change") == 0.0
    assert first["terms"] == again["terms"]


def test_batch_statistics_are_those_of_training_and_nothing_is_kept() -> None:
    model = tiny.Net(4, norm=True)
    x = batch().images
    before = copy.deepcopy(model.state_dict())
    model.eval()
    with torch.no_grad(), batch_statistics([model]):
        seen = model(x)
    assert tiny.same_bytes(before, model.state_dict())
    assert not any(module.training for module in model.modules())
    with torch.no_grad():
        assert not torch.allclose(seen, model(x))
        assert torch.equal(seen, model.train()(x))
    assert not tiny.same_bytes(before, model.state_dict())


@pytest.mark.processes
def test_of_two_processes_the_first_one_looks_and_the_bytes_are_the_same(tmp_path: Path) -> None:
    found = spawned.found_by(probe_worker.work, 2, tmp_path)
    assert [each[2]["steps"] for each in found] == [[0, 2, 4, 6], []]
    assert [each["sharded"] for each in found] == [False, False]
    for each in found:
        assert tiny.same_bytes(each[0]["state"], each[2]["state"])
    written = [record["step"] for record in tiny.records(tmp_path / "every2") if record["kind"] == "probe"]
    assert written == [0, 2, 4, 6]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_compiled_parts_are_not_compiled_anew_and_keep_their_bytes() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)])}
    command = [sys.executable, str(TESTS / "probe_worker.py"), "compiled"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same"]
    assert found["looks"] == 4
    assert found["compiles"][0] == found["compiles"][1] > 0


# What is measured


def test_a_linear_projector_against_numpy() -> None:
    subject = tiny.distiller(norm=True)
    held_back = batch(64)
    optimizer = optim.sgd(subject, weight_decay=0.01)
    probe = Probe(subject, held_back, every=1, optimizer=optimizer)
    start = probe.run(0, 0.0)
    projector = subject.term_modules.get_submodule("feature.projector")
    assert isinstance(projector, nn.Linear)
    first = projector.weight.detach().T.double().numpy().copy()
    with torch.no_grad():
        projector.weight += 0.3 * torch.randn_like(projector.weight)
    record = probe.run(1, 0.5)
    assert start is not None
    assert record is not None
    found = record["terms"]["feature"]
    w = projector.weight.detach().T.double().numpy()
    s, s_0 = np.linalg.svd(w, compute_uv=False), np.linalg.svd(first, compute_uv=False)
    spectrum = found["spectrum"]
    assert found["widths"] == [4, 6]
    assert found["projector"] == "linear"
    assert spectrum["values"] == pytest.approx(s, rel=1e-5)
    assert spectrum["below_initial"] == np.mean(s < s_0)
    assert spectrum["stable_rank"] == pytest.approx((s**2).sum() / s[0] ** 2, rel=1e-5)
    assert spectrum["norm"] == pytest.approx(np.linalg.norm(w), rel=1e-5)
    unit = np.linalg.svd(w / np.linalg.norm(w, axis=0), compute_uv=False)
    assert found["spectrum_normalized"]["values"] == pytest.approx(unit, rel=1e-5)
    dynamics = found["dynamics"]
    cosine = (w * first).sum() / np.linalg.norm(w) / np.linalg.norm(first)
    assert dynamics["initial_share"] == pytest.approx(cosine**2, rel=1e-4)
    assert dynamics["step_change"] == pytest.approx(np.linalg.norm(w - first) / np.linalg.norm(first), rel=1e-5)
    assert dynamics["decay"] == pytest.approx(0.01 * np.linalg.norm(w), rel=1e-5)
    assert dynamics["pull"] == pytest.approx(dynamics["gradient"] / dynamics["decay"], rel=1e-4)
    assert start["terms"]["feature"]["dynamics"]["initial_share"] == pytest.approx(1)
    assert "step_change" not in start["terms"]["feature"]["dynamics"]


def test_features_are_those_of_training_without_dropout() -> None:
    """Correlations, their histogram and the CKAs against features that a plain forward pass in training mode gives."""
    subject = tiny.distiller(norm=True)
    held_back = batch(64)
    record = look(subject, held_back)["terms"]["feature"]
    assert subject.teacher is not None
    features: list[Tensor] = []
    for model, mode in ((subject.student, True), (subject.teacher.model, False)):
        net = copy.deepcopy(model).train(mode)
        net.get_submodule("fc").register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].detach()))
        net(held_back.images)
    projector = subject.term_modules.get_submodule("feature.projector")
    projected = projector(features[0]).detach().double().numpy()
    z_t = features[1].double().numpy()
    c = np.array([np.corrcoef(projected[:, j], z_t[:, j])[0, 1] if z_t[:, j].std() > 0 else 0 for j in range(6)])
    fit = record["fit"]
    assert fit["correlation"]["mean"] == pytest.approx(c.mean(), abs=1e-5)
    assert fit["correlation"]["quantiles"] == pytest.approx(np.quantile(c, np.linspace(0, 1, 11)), abs=1e-5)
    assert fit["histogram"]["counts"] == np.histogram(c, np.array(fit["histogram"]["edges"]))[0].tolist()
    for side, values in (("student", features[0].double().numpy()), ("projected", projected), ("teacher", z_t)):
        alive = values[:, values.std(0) > 0]
        pairs = np.corrcoef(alive.T)[~np.eye(alive.shape[1], dtype=bool)]
        assert record["decorrelation"][side] == pytest.approx((pairs**2).mean(), abs=1e-5)
    assert sum(fit["gradient_share"]) == pytest.approx(1, abs=1e-5)
    assert fit["student_change"] == pytest.approx(0, abs=1e-6)


def test_gradients_are_those_of_a_step() -> None:
    """Of each part, and on W of the weighted term, against a backward pass of a copy in training mode."""
    subject = tiny.distiller(norm=True)
    held_back = batch()
    record = look(subject, held_back, optimizer=optim.sgd(subject))
    for name in ("task", "feature", "logit"):
        twin = copy.deepcopy(subject).train()
        twin.weights = {each: float(each == name) for each in twin.weights}
        twin(held_back).loss.backward()
        squares = [float(p.grad.double().square().sum()) for p in twin.student.parameters() if p.grad is not None]
        assert record["balance"]["norms"][name] == pytest.approx(sum(squares) ** 0.5, rel=1e-4)
        if name == "feature":
            weight = twin.term_modules.get_parameter("feature.projector.weight")
            assert weight.grad is not None
            of_w = record["terms"]["feature"]["dynamics"]["gradient"]
            assert of_w == pytest.approx(0.5 * float(weight.grad.norm()), rel=1e-4)  # the weight of the term
    half = 0.5 * record["balance"]["norms"]["feature"]
    assert record["balance"]["weighted"]["feature"] == pytest.approx(half, rel=1e-5)
    assert set(record["balance"]["cosines"]) == {"task|feature", "task|logit", "feature|logit"}


def test_scores_are_those_of_evaluation() -> None:
    subject = tiny.distiller(norm=True, dropout=0.5)
    held_back, seen = batch(), tiny.Batch(*tiny.images(20, seed=4))
    record = look(subject, held_back, train_batch=seen)["student"]
    assert subject.teacher is not None
    student, teacher = subject.student.eval(), subject.teacher.model
    with torch.no_grad():
        ours, theirs = student(held_back.images), teacher(held_back.images)
        on_train = float((student(seen.images).argmax(1) == seen.target).float().mean())
    assert record["top1"] == pytest.approx(float((ours.argmax(1) == held_back.target).float().mean()))
    assert record["teacher_top1"] == pytest.approx(float((theirs.argmax(1) == held_back.target).float().mean()))
    assert record["agreement"] == pytest.approx(float((ours.argmax(1) == theirs.argmax(1)).float().mean()))
    assert record["loss"] == pytest.approx(float(nn.functional.cross_entropy(ours, held_back.target)), rel=1e-5)
    assert record["confidence"] == pytest.approx(float(ours.softmax(1).amax(1).mean()), rel=1e-5)
    assert record["train_top1"] == pytest.approx(on_train)
    assert not any(name.startswith("teacher") for name in look(subject, held_back, compare_outputs=False)["student"])


@pytest.mark.parametrize("form", [LossForm.DIRECT, LossForm.MOMENTS, LossForm.CHUNKED])
def test_the_form_of_a_term_changes_nothing(form: LossForm) -> None:
    subject = with_term(term(projectors.linear(4, 6), loss=losses.mean_squared_error, form=form))
    subject.term_modules.get_submodule("feature").double()
    subject.double()
    held_back = tiny.Batch(batch().images.double(), batch().target)
    record = look(subject, held_back, optimizer=optim.sgd(subject))
    other = with_term(term(projectors.linear(4, 6), loss=losses.mean_squared_error))
    direct = look(other, optimizer=optim.sgd(other))
    a, b = (each["terms"]["feature"]["dynamics"]["gradient"] for each in (record, direct))
    # The projectors are drawn before the seed; what is compared is that each form gives a finite gradient of its own W.
    assert a > 0
    assert b > 0
    assert set(record["balance"]["norms"]) == {"task", "feature"}


def test_dense_features_are_thinned_by_images() -> None:
    dense = FeatureTerm(
        "conv1",
        "conv1",
        projector=projectors.linear(4, 6),
        loss=losses.mean_squared_error,
        student_pool=pooling.spatial_positions,
        teacher_pool=pooling.spatial_positions,
    )
    x = torch.rand(200, 3, 6, 6)  # 36 positions each: 7200 rows, of which 113 images are kept
    record = look(with_term(dense), tiny.Batch(x, torch.zeros(200, dtype=torch.long)))
    assert record["images"] == 200
    assert sum(record["terms"]["feature"]["fit"]["histogram"]["counts"]) == 6
    assert "gradient_share" not in record["terms"]["feature"]["fit"]


def test_a_squared_error_without_a_norm_has_a_ridge() -> None:
    """W where the weight decay holds it: nearer to the ridge solution than to least squares."""
    bare = {"student_norm": None, "teacher_norm": None, "loss": losses.mean_squared_error}
    subject = with_term(term(projectors.linear(4, 6, bias=False), **bare))
    held_back = batch(64)
    optimizer = optim.sgd(subject, weight_decay=0.05)
    term_ = subject.terms["feature"]
    assert isinstance(term_, FeatureTerm)
    with torch.no_grad():
        student, teacher = subject.capture(held_back)
        assert teacher is not None
        x, y = student.features["fc:input"].double(), teacher.features["fc:input"].double()
        # The minimum of mean (x W - y)^2 + 0.05/2 |W|^2, which has a factor of 2/(n d_t) in its gradient.
        w = torch.linalg.solve(x.T @ x + 0.05 * 64 * 6 / 2 * torch.eye(4), x.T @ y)
        weight = subject.term_modules.get_parameter("feature.projector.weight")
        weight.copy_(w.T)
    dynamics = look(subject, held_back, optimizer=optimizer)["terms"]["feature"]["dynamics"]
    assert dynamics["ridge"] == pytest.approx(0, abs=1e-5)
    assert dynamics["least_squares"] > 1e-4
    assert dynamics["pull"] == pytest.approx(1, rel=1e-3)
    under_adam = look(subject, held_back, optimizer=optim.adamw(subject))["terms"]["feature"]["dynamics"]
    assert not {"ridge", "pull", "decay"} & under_adam.keys()
    assert under_adam["gradient"] == pytest.approx(dynamics["gradient"])


@pytest.mark.parametrize(
    ("projector", "name", "has_w"),
    [
        (projectors.mlp(4, 6, hidden=8, bias=False), "mlp", False),
        (projectors.low_rank(4, 6, rank=2), "low_rank", True),
        (projectors.orthogonal(4, 6), "orthogonal", True),
        (projectors.ensemble(4, 6), "ensemble", False),
    ],
    ids=["mlp", "low_rank", "orthogonal", "ensemble"],
)
def test_other_projectors(projector: nn.Module, name: str, has_w: bool) -> None:
    record = look(with_term(term(projector)))["terms"]["feature"]
    assert record["projector"] == name
    assert record["spectrum"]["count"] == 4
    assert ("dynamics" in record) == has_w
    assert ("gradient" in record.get("dynamics", {})) is False  # W is no parameter
    if name == "low_rank":
        assert record["spectrum"]["values"][2:] == pytest.approx([0, 0], abs=1e-6)
    if name == "orthogonal":
        assert record["spectrum"]["values"] == pytest.approx([1] * 4, rel=1e-4)


def test_inverted_the_teacher_is_projected() -> None:
    inverted = term(
        projectors.linear(6, 4), inverted=True, student_norm=norms.BatchNorm(4), teacher_norm=norms.BatchNorm(4)
    )
    record = look(with_term(inverted))["terms"]["feature"]
    assert record["widths"] == [6, 4]
    assert sum(record["fit"]["histogram"]["counts"]) == 4


def test_a_long_spectrum_is_written_in_part() -> None:
    s = torch.linspace(5, 0.1, 1000)
    record = plain(record_spectrum(s, s * 2))
    assert len(record["values"]) == len(record["index"]) == 256
    assert (record["index"][0], record["index"][-1], record["count"]) == (0, 999, 1000)
    assert record["values"][-1] == pytest.approx(0.1)
    assert record["below_initial"] == 1.0
    assert len(json.dumps(record)) < 6000


@pytest.mark.parametrize(("d_s", "d_t"), [(20, 30), (30, 20)])
def test_the_quicker_singular_values(d_s: int, d_t: int) -> None:
    """Down to a millionth of the greatest, those of NumPy; what is lost is exactly 0."""
    u, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(d_s, 20)))
    v, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(d_t, 20)))
    s = np.concatenate([np.logspace(1, -4, 18), [0, 0]])
    found = quick_singular_values(torch.from_numpy(u * s @ v.T))
    assert found[:18].numpy() == pytest.approx(s[:18], rel=1e-4)
    assert found[18:].tolist() == [0, 0]


def test_the_matrix_of_a_projector() -> None:
    low = projectors.low_rank(4, 6, rank=2)
    found = matrix(low)
    assert found is not None
    assert torch.allclose(low(torch.eye(4)), found)
    assert matrix(nn.Identity()) is None
    assert torch.equal(column_normalized(found).norm(dim=0).round(decimals=5), torch.ones(6))


def test_blocks_of_a_vit() -> None:
    from limbeck import models

    model = models.build("small/vit-32", num_classes=3, size=16)
    subject = Distiller(model.module, None, Classification())
    x, target = tiny.images(8, size=16)
    found = look(subject, tiny.Batch(x, target), blocks=["blocks.0", "blocks.5"])["equivariance"]
    assert sorted(found) == ["blocks.0", "blocks.5"]
    assert all(0 < value < 4 for value in found.values())


# What cannot be computed is absent


def test_a_student_alone() -> None:
    subject = Distiller(tiny.Net(4), None, Classification())
    probe = Probe(subject, batch(), every=5)
    steps = [step for step in range(8) if probe(step, 0.0) is not None]
    assert steps == [0, 5]
    record = probe.records[0]
    assert record.keys() == {"step", "epoch", "seconds", "images", "balance", "student"}
    assert record["student"].keys() == {"top1", "loss", "confidence", "ece"}


def test_without_labels() -> None:
    held_back = batch(labels=False)
    record = look(with_term(term(projectors.linear(4, 6)), task=LabelFree()), held_back)
    assert "student" not in record  # outputs are no logits that anybody reads
    assert set(record["balance"]["norms"]) == {"feature"}
    logits = Distiller(tiny.Net(4), tiny.Net(6), LabelFree(), terms={"logit": LogitTerm()})
    assert look(logits, held_back)["student"].keys() == {"confidence", "agreement", "teacher_confidence"}


@pytest.mark.parametrize("kind", ["feature", "logit"])
def test_without_labels_a_probe_says_how_alike_student_and_teacher_are(kind: str, tmp_path: Path) -> None:
    """Against CKA by hand, of what the term compares; the student's norms use this batch and keep nothing of it."""
    tap = "fc:input" if kind == "feature" else "output"
    terms = {"feature": term(projectors.linear(4, 6))} if kind == "feature" else {"logit": LogitTerm()}
    torch.manual_seed(0)
    random, subject = tiny.Net(4), Distiller(tiny.Net(4), tiny.Net(6), LabelFree(), terms=terms)
    before = copy.deepcopy(subject.state_dict())
    held_back = batch(labels=False)

    def alike(student: nn.Module) -> float:
        assert subject.teacher is not None
        theirs = Taps(subject.teacher.model.eval(), [tap])(held_back[0]).features[tap]
        with batch_statistics([student.eval()]), torch.no_grad():
            return float(cka(Taps(student, [tap])(held_back[0]).features[tap], theirs))

    with RunLog(tmp_path, progress=False) as log:
        probe = Probe(subject, held_back, every=10, log=log, untrained=random)
        record = probe(0, 0.0)
        assert probe.figures == {}
        assert probe(1, 0.5) is None
        assert probe.figures == {}
        probe(2, 1.0)
    assert record is not None
    expected = {"cka": alike(subject.student), "untrained": alike(random)}
    assert expected["cka"] != pytest.approx(expected["untrained"])
    assert record["following"] == pytest.approx(expected, rel=1e-4)
    assert probe.figures == pytest.approx({"teacher_cka": expected["cka"]}, rel=1e-4)
    assert tiny.same_bytes(subject.state_dict(), before)
    assert "following" not in look(with_term(term(projectors.linear(4, 6))))


@pytest.mark.parametrize("kind", ["ridge", "whitening"])
def test_what_has_seen_no_batch_yet_is_not_there_at_first(kind: str) -> None:
    if kind == "ridge":
        late = term(projectors.Ridge(4, 6))
    else:
        late = term(projectors.linear(4, 6), input_norm=norms.ZCA(4, momentum=0.1))
    subject = with_term(late)
    probe = Probe(subject, batch(), every=1)
    first = probe(0, 0.0)
    subject.train()(batch())
    second = probe(1, 0.1)
    assert first is not None
    assert second is not None
    assert "terms" not in first
    assert set(first["balance"]["norms"]) == {"task"}
    assert second["terms"]["feature"]["spectrum"]["count"] == 4
    third = probe(2, 0.2)
    assert third is not None
    assert third["terms"]["feature"]["dynamics"]["step_change"] == 0.0
    assert third["terms"]["feature"]["dynamics"]["initial_share"] == pytest.approx(1)  # since the second
    assert third["terms"]["feature"]["fit"]["student_change"] == pytest.approx(0, abs=1e-6)


def test_relations_have_a_cka_only() -> None:
    pairs = RelationTerm("fc:input", "fc:input", loss=losses.similarity_preserving)
    assert list(look(with_term(pairs))["terms"]["feature"]) == ["cka"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_absent(value: float, tmp_path: Path) -> None:
    subject = tiny.distiller()
    log = RunLog(tmp_path)
    probe = Probe(subject, batch(), log=log)
    with torch.no_grad():
        next(subject.student.parameters()).fill_(value)
    probe.run(0, 0.0)
    line = (tmp_path / "log.jsonl").read_text()
    assert "NaN" not in line
    assert "Infinity" not in line
    assert json.loads(line)["terms"]["feature"] == {"widths": [4, 6], "projector": "linear"}


def test_plain_numbers() -> None:
    nested = {"a": float("nan"), "b": [1.0, float("inf")], "c": {"d": torch.tensor(1 / 3)}, "e": {"f": float("nan")}}
    assert plain(nested) == {"c": {"d": 0.333333}}


# The teacher


def test_a_teacher_that_is_released_is_no_loss() -> None:
    subject = tiny.distiller()
    live, kept = Probe(subject, batch()), Probe(subject, batch())
    with_teacher = live.run(0, 0.0)
    subject.release_teacher()
    without = kept.run(0, 0.0)
    assert with_teacher is not None
    assert without is not None
    assert timeless([with_teacher]) == timeless([without])
    with pytest.raises(UserError, match="the teacher was released; make the probe before"):
        Probe(subject, batch())


class Unsound(tiny.Net):
    """A teacher that has no eval mode."""

    def __init__(self, kind: str) -> None:
        super().__init__(6, norm=kind == "statistics")
        if isinstance(self.norm, nn.BatchNorm2d):
            self.norm.track_running_stats = False
            self.norm.running_mean = self.norm.running_var = None
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return nn.functional.dropout(y, 0.5) if self.kind == "dropout" else y


def test_an_unsound_teacher_shows() -> None:
    def soundness(teacher: nn.Module) -> dict[str, float]:
        torch.manual_seed(0)
        return look(Distiller(tiny.Net(4), teacher, Classification(), terms={"logit": LogitTerm()}))["teacher"]

    sound = soundness(tiny.Net(6, norm=True))
    assert sound["batch_dependence"] < 1e-6
    assert sound["repeatability"] == 0
    statistics, dropout = soundness(Unsound("statistics")), soundness(Unsound("dropout"))
    assert statistics["batch_dependence"] > 1e-2
    assert statistics["repeatability"] == 0
    assert dropout["repeatability"] > 1e-2


# When it looks


class Clock:
    """Time that passes as it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_budget_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look takes two seconds and a step three: from the second look on they take no more than a hundredth."""
    clock = Clock()
    monkeypatch.setattr(probe_module.time, "perf_counter", clock)
    subject = tiny.distiller()
    probe = Probe(subject, batch(8))
    look_ = probe._look

    def slow(*given: Any) -> dict[str, Any]:
        clock.now += 2
        return look_(*given)

    monkeypatch.setattr(probe, "_look", slow)
    steps: list[int] = []
    for step in range(700):
        if probe(step, 0.0) is not None:
            steps.append(step)
        clock.now += 3
    assert steps[0] == 0
    assert probe.seconds == 2 * len(steps)
    later = 2 * (len(steps) - 1)
    assert 0.5 < later / (0.01 * (clock.now - 1002)) <= 1
    assert all(66 <= b - a <= 68 for a, b in itertools.pairwise(steps))
    assert probe.run(700, 1.0) is not None
    assert len(probe.records) == len(steps) + 1
    assert probe.run(700, 1.0) is probe.records[-1]  # not twice at one step


def test_in_a_loop_of_ones_own(tmp_path: Path) -> None:
    subject = tiny.distiller()
    optimizer = optim.sgd(subject)
    with RunLog(tmp_path, progress=False) as log:
        probe = Probe(subject, batch(), every=2, log=log)
        for step in range(5):
            probe(step, epoch=step / 5)
            subject.train()(tiny.Batch(*tiny.images(8))).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    written = [record for record in tiny.records(tmp_path) if record["kind"] == "probe"]
    assert [record["step"] for record in written] == [0, 2, 4]
    assert written == [{"kind": "probe", **record} for record in probe.records]
    changes = [record["terms"]["feature"]["dynamics"]["initial_share"] for record in written]
    assert changes[0] == pytest.approx(1)
    assert changes[0] > changes[1] > changes[2]


def test_too_little_memory_costs_the_looks_and_not_the_run(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    probe = Probe(tiny.distiller(), batch(), every=1, log=RunLog(tmp_path))
    assert probe(0, 0.0) is not None

    def refuse(*given: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(probe, "_look", refuse)
    assert probe(1, 0.1) is None
    assert probe(2, 0.2) is None
    assert capfd.readouterr().err.count("the probe needs more memory than there is") == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: Probe(d, batch(), every=0), "every is 0; expected at least 1"),
        (lambda d: Probe(d, batch(), budget=0.0), "budget is 0.0; expected a number above 0"),
        (lambda d: Probe(d, batch(3)), "the batch has 3 images; expected at least 4"),
    ],
)
def test_wrong_arguments(make: Callable[[Distiller], Probe], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(tiny.distiller())


# A run that goes on


@pytest.mark.parametrize("stop_after", [2, 4, 5, 8])
def test_a_run_that_was_killed_has_the_records_of_an_unbroken_one(tmp_path: Path, stop_after: int) -> None:
    """Killed before its first checkpoint, between a checkpoint and a look, and behind looks that are made again."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    probed.train(every=2, folder=whole, epochs=3)
    with pytest.raises(KeyboardInterrupt):
        probed.train(every=2, folder=broken, epochs=3, loader=probed.Loader(stop_after=stop_after))
    probed.train(every=2, folder=broken, epochs=3)
    expected, found = (
        timeless([record for record in tiny.records(folder) if record["kind"] == "probe"]) for folder in (whole, broken)
    )
    for record in (*expected, *found):
        record.pop("teacher", None)  # told once a start
    assert [record["step"] for record in expected] == [0, 2, 4, 6, 8, 9]
    assert found == expected


def test_what_is_remembered_may_be_damaged_or_of_another_run(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        probed.train(every=2, folder=tmp_path, epochs=3, loader=probed.Loader(stop_after=5))
    for name in ("first", "last", "before"):
        path = tmp_path / "probe" / f"{name}.safetensors"
        path.write_bytes(path.read_bytes()[:-20])
    again = probed.train(every=2, folder=tmp_path, epochs=3).probe
    assert again is not None
    assert again.records[0]["terms"]["feature"]["dynamics"]["initial_share"] == pytest.approx(1)  # a new first look


def test_undisturbed_also_after_an_error() -> None:
    subject = tiny.distiller().train()
    state = torch.get_rng_state()

    def fail() -> None:
        with undisturbed(subject, CPU):
            torch.rand(3)
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail()
    assert torch.equal(state, torch.get_rng_state())
    assert subject.student.training
