import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from limbeck import Distiller, FeatureTerm, LogitTerm, fit, losses, projectors
from limbeck.distiller import StepResult, UpstreamGradients
from limbeck.errors import UserError
from limbeck.features import pooling
from limbeck.features.taps import Captured
from limbeck.storage.checkpoint import Checkpoints
from limbeck.tasks import Classification, LabelFree
from limbeck.terms import LabelledLogitTerm, RelationTerm
from limbeck.training.accumulation import Accumulation
from tiny import Batch, Loader, Net

SIZES = [[6, 6], [5, 5, 3], [4, 4, 4, 1]]
NO_SCALER = torch.amp.GradScaler("cpu", enabled=False)


def with_every_kind_of_term(*, dropout: float = 0.0, norm: bool = False) -> Distiller:
    """Batch norms, LogSum, relations between the samples, positions, an output that is tapped twice."""
    source = tiny.distiller(dropout=dropout, norm=norm)
    assert source.teacher is not None
    terms = {
        "correlation": tiny.feature_term(4, 6, correlation=True),
        "log_sum": tiny.feature_term(4, 6),
        "dense": FeatureTerm(
            "conv2",
            "conv2",
            projector=projectors.linear(4, 6),
            student_pool=pooling.spatial_positions,
            teacher_pool=pooling.spatial_positions,
            loss=losses.log_sum,
        ),
        "relation": RelationTerm("output", "fc:input", loss=losses.similarity_preserving),
        "same": RelationTerm("fc", "fc", loss=losses.similarity_preserving),
        "logit": LogitTerm(losses.multi_level_kl),
        "labelled": LabelledLogitTerm(),
    }
    weights = {"task": 0.7, "correlation": 0.1, "log_sum": 0.3, "relation": 2.0, "labelled": lambda done: 1 - done}
    subject = Distiller(source.student, source.teacher.model, Classification(), terms=terms, weights=weights).double()
    subject.progress = 0.25
    return subject


def split(sizes: list[int]) -> tuple[Batch, list[Batch]]:
    """All rows, and their batches."""
    x, target = tiny.images(sum(sizes))
    parts = zip(x.double().split(sizes), target.split(sizes), strict=True)
    return Batch(x.double(), target), [Batch(*part) for part in parts]


def accumulated(subject: Distiller, batches: list[Batch], **more: Any) -> StepResult:
    return Accumulation(subject, subject, more.pop("scaler", NO_SCALER), **more)(batches)


def gradients(subject: Distiller) -> dict[str, Tensor]:
    return {name: p.grad for name, p in subject.trainable_parameters().items() if p.grad is not None}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.allclose(found[name], value, rtol=tolerance, atol=tolerance), name


def directly(subject: Distiller, batches: list[Batch], autocast: Callable[[], Any]) -> StepResult:
    """The loss of the whole with one graph through all batches, which go through the student one by one."""
    students, teachers = [], []
    for batch in batches:
        with autocast():
            student, teacher = subject.capture(batch)
        assert teacher is not None
        students.append(student)
        teachers.append(teacher)

    def joined(captured: list[Captured]) -> Captured:
        features = {name: torch.cat([c.features[name] for c in captured]) for name in captured[0].features}
        return Captured(torch.cat([c.output for c in captured]), features, torch.cat([b.target for b in batches]))

    with autocast():
        whole = joined(students)
        task_loss = nn.functional.cross_entropy(
            whole.output.to(torch.promote_types(whole.output.dtype, torch.float32)), whole.target
        )
        return subject.compare(whole, joined(teachers), task_loss)


@pytest.mark.parametrize("sizes", SIZES)
def test_loss_parts_and_gradients_are_those_of_one_large_batch(sizes: list[int]) -> None:
    whole, batches = split(sizes)
    subject, twin = with_every_kind_of_term(), with_every_kind_of_term()
    expected = twin(whole)
    expected.loss.backward()
    result = accumulated(subject, batches)
    assert not result.loss.requires_grad
    assert not result.output.requires_grad
    assert_close({"loss": result.loss, "output": result.output}, {"loss": expected.loss, "output": expected.output})
    assert_close(result.parts, expected.parts)
    assert_close(result.readings, expected.readings, 1e-6)  # agreement is float32
    assert len(gradients(twin)) == len(twin.trainable_parameters())
    assert_close(gradients(subject), gradients(twin))


def test_it_is_another_loss_than_the_mean_over_batches() -> None:
    """Or else nothing here could fail."""
    whole, batches = split([6, 6])
    subject = with_every_kind_of_term()
    apart, together = [subject(batch).parts for batch in batches], subject(whole).parts
    for name in ("correlation", "log_sum", "dense", "relation", "same", "logit"):
        assert abs((apart[0][name] + apart[1][name]) / 2 - together[name]) > 1e-4, name


@pytest.mark.parametrize("sizes", SIZES)
def test_both_passes_have_the_same_dropout(sizes: list[int]) -> None:
    _, batches = split(sizes)
    subject, twin = with_every_kind_of_term(dropout=0.4), with_every_kind_of_term(dropout=0.4)
    torch.manual_seed(3)
    expected = directly(twin, batches, partial(torch.autocast, "cpu", enabled=False))
    behind = torch.rand(4)
    expected.loss.backward()
    torch.manual_seed(3)
    result = accumulated(subject, batches)
    assert torch.equal(torch.rand(4), behind)  # the second pass left the generator where the first one did
    assert_close({"loss": result.loss}, {"loss": expected.loss})
    assert_close(gradients(subject), gradients(twin))


def test_what_a_term_draws_is_not_drawn_again() -> None:
    """Negatives of CRD, for instance: behind the second pass the generator stands where the term left it."""
    _, batches = split([6, 6])
    subject = with_every_kind_of_term(dropout=0.4)
    left: list[Tensor] = []

    def noisy(y_s: Tensor, y_t: Tensor) -> Tensor:
        torch.rand(5)
        left.append(torch.get_rng_state())
        return losses.kl_divergence(y_s, y_t)

    subject.terms["logit"] = LogitTerm(noisy)
    accumulated(subject, batches)
    assert torch.equal(torch.get_rng_state(), left[0])


def test_running_statistics_move_once_a_batch() -> None:
    _, batches = split([5, 5, 3])
    subject, twin = with_every_kind_of_term(norm=True), with_every_kind_of_term(norm=True)
    for batch in batches:
        twin(batch)
    accumulated(subject, batches)
    expected = dict(twin.student.named_buffers())
    assert int(expected["norm.num_batches_tracked"]) == 3
    assert_close(dict(subject.student.named_buffers()), expected)


def test_batch_norm_of_the_student_sees_one_batch_at_a_time_and_the_gradient_knows() -> None:
    _, batches = split([5, 5, 3])
    subject, twin = with_every_kind_of_term(norm=True), with_every_kind_of_term(norm=True)
    directly(twin, batches, partial(torch.autocast, "cpu", enabled=False)).loss.backward()
    accumulated(subject, batches)
    assert_close(gradients(subject), gradients(twin))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_autocast_and_scale(precision: torch.dtype) -> None:
    """The scale is on the loss once; without the right autocast the second pass would have no gradient."""
    _, batches = split([5, 5, 3])
    batches = [Batch(batch.images.float(), batch.target) for batch in batches]
    subject, twin = with_every_kind_of_term(dropout=0.2).float(), with_every_kind_of_term(dropout=0.2).float()
    autocast = partial(torch.autocast, "cpu", dtype=precision)
    torch.manual_seed(3)
    expected = directly(twin, batches, autocast)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    (1024 * expected.loss).backward()
    torch.manual_seed(3)
    result = accumulated(subject, batches, scaler=scaler, autocast=autocast)
    assert result.output.dtype == precision
    assert result.loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)
    found = gradients(subject)
    assert found.keys() == subject.trainable_parameters().keys()
    for name, gradient in gradients(twin).items():
        assert gradient.abs().max() > 0.1, name
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max())), name


def test_without_terms_batches_count_by_their_rows() -> None:
    whole, batches = split([5, 5, 3])
    torch.manual_seed(0)
    subject = Distiller(Net(4), None, Classification()).double()
    twin = copy.deepcopy(subject)
    expected = twin(whole)
    expected.loss.backward()
    passes: list[int] = []
    subject.student.register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
    result = Accumulation(subject, subject, NO_SCALER)(batches)
    assert passes == [5, 5, 3]  # one pass is enough
    assert_close({"loss": result.loss, "output": result.output}, {"loss": expected.loss, "output": expected.output})
    assert_close(result.parts, expected.parts)
    assert_close(gradients(subject), gradients(twin))


def test_a_frozen_student_whose_projectors_are_trained() -> None:
    whole, batches = split([5, 5, 3])
    subject, twin = with_every_kind_of_term(), with_every_kind_of_term()
    for each in (subject, twin):
        each.student.requires_grad_(False)
    twin(whole).loss.backward()
    accumulated(subject, batches)
    assert len(gradients(subject)) == len(subject.trainable_parameters()) > 0
    assert_close(gradients(subject), gradients(twin))


class Probe:
    """Keeps the labels and numbers of the images that it is shown."""

    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.readings: dict[str, Tensor] = {}
        self.seen: list[Captured] = []

    def __call__(self, student: Captured, teacher: Captured) -> Tensor:
        assert student.target is teacher.target
        assert student.index is teacher.index
        self.seen.append(student)
        return losses.kl_divergence(student.output, teacher.output)


def test_labels_and_numbers_of_the_images_are_joined() -> None:
    x, target = tiny.images(12)
    index = torch.randperm(12)
    batches = list(zip(x.split(6), target.split(6), index.split(6), strict=True))
    for task, has_target in ((Classification(), True), (LabelFree(), False)):
        probe = Probe()
        subject = Distiller(Net(4), Net(6), task, terms={"probe": probe})
        result = Accumulation(subject, subject, NO_SCALER)(batches)
        assert set(result.parts) == ({"task", "probe"} if has_target else {"probe"})
        (seen,) = probe.seen
        assert seen.index is not None
        assert torch.equal(seen.index, index)
        assert (seen.target is not None) == has_target
        if seen.target is not None:
            assert torch.equal(seen.target, target)


def test_batches_of_other_sizes_of_images_are_one_line() -> None:
    batches = [Batch(*tiny.images(4, size=size)) for size in (6, 8)]
    subject = with_every_kind_of_term().float()
    with pytest.raises(UserError, match=r'differ in feature "conv2": \(4, 4, 3, 3\) and \(4, 4, 4, 4\)') as raised:
        accumulated(subject, batches)
    assert "\n" not in str(raised.value)


def test_a_pull_has_the_gradient_of_its_surrogate() -> None:
    whole, _ = split([6])
    subject = with_every_kind_of_term()
    upstream = UpstreamGradients(None, {"conv2": torch.ones(6, 4, 3, 3, dtype=torch.float64)}, {})
    result = subject(whole, upstream)
    assert result.parts == {}
    student, _ = subject.capture(whole)
    assert result.loss.item() == pytest.approx(student.features["conv2"].sum().item())
    result.loss.backward()
    assert "student.conv2.weight" in gradients(subject)
    assert "student.fc.weight" not in gradients(subject)


def test_broken_off_it_ends_with_the_bytes_of_an_unbroken_run(tmp_path: Path) -> None:
    """Batch norm, dropout, moving average, and a short group at the end of each epoch."""

    def train(folder: Path, stop_after: int | None = None) -> dict[str, Tensor]:
        subject = tiny.distiller(norm=True, dropout=0.3)
        result = fit(
            subject,
            Loader(40, 8, stop_after=stop_after),
            epochs=3,
            accumulate=2,
            clip=1.0,
            ema_decay=0.8,
            checkpoints=Checkpoints(folder),
            cpu=True,
        )
        assert (result.counters.step, result.counters.images) == (9, 120)
        return (
            subject.student.state_dict()
            | subject.term_modules.state_dict(prefix="terms.")
            | result.student.state_dict(prefix="average.")
        )

    unbroken = train(tmp_path / "unbroken")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", stop_after=8)
    torch.rand(7)  # a new process does not go on where this one's generator stands
    assert tiny.same_bytes(train(tmp_path / "broken"), unbroken)
