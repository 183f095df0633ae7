"""What is told of a step whose numbers are not finite: the part that was at fault first, and the batch itself."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import tiny
from limbeck import Distiller, LogitTerm, fit, losses
from limbeck.errors import UserError
from limbeck.logs.runlog import RunLog
from limbeck.storage.files import load_weights
from limbeck.tasks import Classification, LabelFree
from limbeck.training import bad_batch
from limbeck.training.bad_batch import BAD_BATCH, Finding, retrace
from limbeck.training.guard import Guard, Skip

CPU = torch.device("cpu")


class Indexed(NamedTuple):
    images: Tensor
    target: Tensor
    index: Tensor


class Loader:
    """Batches of eight images with their numbers; one image is not finite."""

    def __init__(self, bad: int | None) -> None:
        self.images, self.target = tiny.images(32)
        if bad is not None:
            self.images[bad, 0, 0, 0] = math.inf

    def __len__(self) -> int:
        return 4

    def __iter__(self):
        for start in range(0, 32, 8):
            rows = torch.arange(start, start + 8)
            yield Indexed(self.images[rows], self.target[rows], rows)

    def set_epoch(self, epoch: int) -> None:
        pass

    def shard(self, rank: int, world_size: int) -> "Loader":
        return self


def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / BAD_BATCH).read_text(encoding="utf-8"))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_image_that_is_not_finite_is_found_at_its_step_and_its_batch_is_kept(tmp_path: Path, accumulate: int):
    with pytest.raises(
        UserError, match=r"step \d .*the input is not finite before it \(training images 19\), the batch is in "
    ):
        fit(tiny.distiller(), Loader(bad=19), epochs=1, accumulate=accumulate, log=RunLog(tmp_path), cpu=True)
    found = told(tmp_path)
    assert found["step"] == (3 if accumulate == 1 else 2)
    assert found["images"] == list(range(16, 24 if accumulate == 1 else 32))
    assert found["faulty"] == [19]
    assert found["first"] == "input"
    assert found["finite"]["input"] is False
    assert found["finite"]["parameters"] is True
    assert found["losses"]["loss"] == "nan"
    kept = load_weights((tmp_path / BAD_BATCH).with_suffix(".safetensors"))
    loader = Loader(bad=19)
    assert torch.equal(kept["images"], loader.images[found["images"]])
    assert torch.equal(kept["labels"], loader.target[found["images"]])
    assert kept["numbers"].tolist() == found["images"]


def parameters(distiller: Distiller) -> None:
    """Of the student's second layer, so that what its first gives is finite."""
    with torch.no_grad():
        distiller.student.conv2.weight.fill_(math.nan)


def teacher(distiller: Distiller) -> None:
    assert distiller.teacher is not None
    with torch.no_grad():
        distiller.teacher.model.conv2.weight.fill_(math.inf)


def teacher_output(distiller: Distiller) -> None:
    assert distiller.teacher is not None
    distiller.teacher.model.fc.register_forward_hook(lambda module, inputs, output: output / 0)


def student_feature(distiller: Distiller) -> None:
    distiller.student.drop.register_forward_hook(lambda module, inputs, output: output * math.inf)


def student_output(distiller: Distiller) -> None:
    distiller.student.fc.register_forward_hook(lambda module, inputs, output: output * math.nan)


def term(distiller: Distiller) -> None:
    distiller.terms["feature"].correlation_loss = lambda c: c.sum() * math.inf


def task(distiller: Distiller) -> None:
    distiller.task.loss = lambda output, batch: output.sum() * math.nan


def weight(distiller: Distiller) -> None:
    distiller.weights["task"] = math.inf


def gradient(distiller: Distiller) -> None:
    """Of the projector alone."""
    projector = distiller.term_modules.get_submodule("feature.projector")
    projector.register_forward_hook(lambda module, inputs, output: output + BadWeight.apply(module.weight))


class BadWeight(torch.autograd.Function):
    """Zero, with a gradient that is not a number."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        ctx.shape = weight.shape
        return weight.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].new_full(ctx.shape, math.nan)


PLANTED = {
    parameters: ("parameters", "; before it student.conv2.weight is not"),
    teacher: ("teacher fc:input", "; the teacher fc:input is not finite before it"),
    teacher_output: ("teacher output", "; the teacher output is not finite before it"),
    student_feature: ("student fc:input", "; the student fc:input is not finite before it"),
    student_output: ("student output", "; the student output is not finite before it"),
    term: ("term feature", 'the loss is not finite at step 1 (epoch 1): part "feature" is '),
    task: ("task", 'the loss is not finite at step 1 (epoch 1): part "task" is nan, the batch'),
    weight: ("loss", "the loss is not finite at step 1 (epoch 1): the weighted sum is inf, the batch"),
    gradient: (
        "gradient",
        "the gradient is not finite at step 1 (epoch 1): that of terms.feature.projector.weight, the",
    ),
}


@pytest.mark.parametrize("plant", list(PLANTED))
def test_the_part_that_is_at_fault_first_is_named(tmp_path: Path, plant: Any) -> None:
    first, words = PLANTED[plant]
    distiller = tiny.distiller()
    plant(distiller)
    with pytest.raises(UserError) as raised:
        fit(distiller, Loader(bad=None), epochs=1, log=RunLog(tmp_path), cpu=True)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    found = told(tmp_path)
    assert found["first"] == first
    if first in found["finite"]:
        before = list(found["finite"])[: list(found["finite"]).index(first)]
        assert all(found["finite"][name] for name in before)
    names = ["input", "parameters", "teacher fc:input", "teacher output", "student fc:input", "student output"]
    assert list(found["finite"]) == names
    assert found["parameters"] == (["student.conv2.weight"] if first == "parameters" else [])
    if first == "gradient":
        assert found["gradients"] == ["terms.feature.projector.weight"]
        assert found["gradient_norm"] == "nan"


def test_a_norm_that_overflows_while_each_number_is_finite_is_told(tmp_path: Path) -> None:
    distiller = tiny.distiller()
    distiller.weights = dict.fromkeys(distiller.weights, 1e35)
    with pytest.raises(
        UserError, match=r"the gradient is not finite at step 1 \(epoch 1\): its norm is inf, the batch"
    ):
        fit(distiller, Loader(bad=None), epochs=1, log=RunLog(tmp_path), cpu=True)
    assert told(tmp_path)["gradients"] == []


def test_looking_again_draws_no_number_and_sees_what_the_step_saw() -> None:
    distiller = tiny.distiller(norm=True, dropout=0.5)
    batch = next(iter(Loader(None)))
    torch.manual_seed(3)
    found = retrace(distiller, [batch, batch], CPU, lambda: torch.autocast("cpu", enabled=False))
    assert [len(rows) for rows in found.values()] == [16] + [len(distiller.trainable_parameters())] + 4 * [16]
    assert all(bool(rows.all()) for rows in found.values())
    after = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(3))


def test_a_sound_run_leaves_no_such_file_and_without_a_folder_there_is_none(tmp_path: Path) -> None:
    fit(tiny.distiller(), Loader(bad=None), epochs=1, log=RunLog(tmp_path), cpu=True)
    assert not (tmp_path / BAD_BATCH).exists()
    with pytest.raises(
        UserError, match=r"the input is not finite before it \(training images 3\); the last checkpoint"
    ):
        fit(tiny.distiller(), Loader(bad=3), epochs=1, cpu=True)


class SickTeacher(tiny.Net):
    """Its output, and nothing before it, is NaN for some images."""

    def forward(self, x: Tensor) -> Tensor:
        output = super().forward(x)
        return torch.where(x[:, 0, 0, 0, None] == SICK, math.nan, output)


SICK = 0.375


def with_sick_teacher(terms: dict[str, Any], *images: int) -> tuple[Distiller, Loader]:
    loader = Loader(bad=None)
    loader.images[list(images), 0, 0, 0] = SICK
    return Distiller(tiny.Net(4), SickTeacher(6), Classification(), terms=terms), loader


TERMS = {
    "that reads it": LogitTerm,
    "that averages": lambda: LogitTerm(loss=losses.pearson_distance),
    "that does not read it": lambda: tiny.feature_term(4, 6, correlation=True),
}


@pytest.mark.parametrize("late", [False, True], ids=["at once", "as on a GPU"])
@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_teacher_that_gives_nan_for_some_images_is_named_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int, term: str, late: bool
) -> None:
    real = Guard.__init__

    def init(self: Guard, *values: Any, **named: Any) -> None:
        real(self, *values, **named)
        self.reads_at_once = not late

    monkeypatch.setattr(Guard, "__init__", init)
    distiller, loader = with_sick_teacher({"term": TERMS[term]()}, 18, 21)
    with pytest.raises(UserError) as raised:
        fit(distiller, loader, epochs=1, accumulate=accumulate, log=RunLog(tmp_path), cpu=True)
    step = 3 if accumulate == 1 else 2
    text = (
        f"the teacher output is not finite at step {step} (epoch 1): NaN (training images 18, 21), though the loss is "
        "finite, the batch"
        if term == "that does not read it"
        else f'the loss is not finite at step {step} (epoch 1): part "term" is nan; the teacher output is not finite '
        "before it (training images 18, 21), the batch"
    )
    assert str(raised.value).startswith(text)
    assert str(raised.value).endswith(
        "; check the teacher's weights, its mean and std, and these images, or try float32"
    )
    found = told(tmp_path)
    assert (found["first"], found["faulty"]) == ("teacher output", [18, 21])


def test_steps_on_which_the_teacher_gives_nan_can_be_left_out(tmp_path: Path) -> None:
    distiller, loader = with_sick_teacher({"term": TERMS["that does not read it"]()}, 3, 18)
    result = fit(distiller, loader, epochs=2, log=RunLog(tmp_path, progress=False), on_bad_numbers=Skip(), cpu=True)
    assert result.counters.skipped == 4
    bad = [record for record in tiny.records(tmp_path) if record["kind"] == "bad"]
    assert "the teacher output is not finite at step 1 (epoch 1): NaN (training images 3)" in bad[0]["text"]


def finding(**changed: Any) -> Finding:
    values = {"step": 3, "epoch": 1, "losses": {"loss": math.nan, "task": math.nan}, "norm": 1.0}
    return Finding(**{**values, "finite": {"input": True}, "images": [1, 2], **changed})


def test_large_batches_are_cut_and_what_has_no_numbers_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    x = torch.rand(8, 3, 4, 4)
    monkeypatch.setattr(bad_batch, "MOST_BYTES", 5 * 3 * 16 * 4 + 1)
    assert bad_batch.save(finding(), tmp_path, [x], LabelFree()) == f", the batch is in {tmp_path / BAD_BATCH}"
    kept = load_weights((tmp_path / BAD_BATCH).with_suffix(".safetensors"))
    assert list(kept) == ["images"]
    assert torch.equal(kept["images"], x[:5])
    # Of a later step whose batch was gone nothing of an earlier one stays.
    bad_batch.save(finding(step=4), tmp_path, [], LabelFree())
    assert [path.name for path in tmp_path.iterdir()] == [BAD_BATCH]


def test_images_of_unequal_size_are_not_kept_and_their_labels_are(tmp_path: Path) -> None:
    batches = [(torch.rand(2, 3, 4, 4), torch.tensor([1, 2])), (torch.rand(2, 3, 5, 5), torch.tensor([0, 2]))]
    bad_batch.save(finding(), tmp_path, batches, tiny.distiller().task)
    kept = load_weights((tmp_path / BAD_BATCH).with_suffix(".safetensors"))
    assert {name: value.tolist() for name, value in kept.items()} == {"labels": [1, 2, 0, 2]}


def test_a_folder_that_cannot_be_written_does_not_hide_the_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = bad_batch.save(finding(), tmp_path / "file", [torch.rand(2, 3)], LabelFree())
    assert said.startswith(f" (cannot write {tmp_path / 'file' / BAD_BATCH}")


def test_the_kept_batch_gives_the_step_again(tmp_path: Path) -> None:
    """As the guide has it."""
    distiller = tiny.distiller()
    with pytest.raises(UserError):
        fit(distiller, Loader(bad=3), epochs=1, log=RunLog(tmp_path), cpu=True)
    kept = load_weights((tmp_path / BAD_BATCH).with_suffix(".safetensors"))
    bad = ~kept["images"].flatten(1).isfinite().all(1)
    assert kept["numbers"][bad].tolist() == [3]
    step = distiller((kept["images"], kept["labels"], kept["numbers"]))
    assert {name: str(value.item()) for name, value in step.parts.items()}.items() <= told(tmp_path)["losses"].items()
