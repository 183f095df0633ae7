"""Where a teacher comes from, and the recipe by which one is trained here."""

import re
from pathlib import Path

import pytest
from safetensors.torch import save_file

from limbeck import models
from limbeck.assembly import teacher as teachers
from limbeck.assembly.build import build_data
from limbeck.data import Data
from limbeck.errors import UserError
from limbeck.models import WeightsUnavailable
from limbeck.recipes.recipe import ONES_OWN, Recipe, keeping_teacher


@pytest.fixture
def data(small: Recipe) -> Data:
    return build_data(small)


class Trainer:
    """Keeps what it was asked to train, and puts a finished run there."""

    def __init__(self, finished: Path) -> None:
        self.asked: list[Recipe] = []
        self._weights = next((finished.parent / "teachers").iterdir())

    def __call__(self, recipe: Recipe, folder: Path) -> None:
        self.asked.append(recipe)
        folder.mkdir(parents=True)
        for file in self._weights.iterdir():
            if file.is_file():
                (folder / file.name).write_bytes(file.read_bytes())


def test_the_teachers_recipe_is_the_students_for_another_model(small: Recipe) -> None:
    recipe = small.changed(
        {
            "schedule": "step",
            "milestones": [1],
            "teacher_epochs": 6,
            "teacher_size": 16,
            "size": 8,
            "ema": 0.9,
            "seed": 3,
        }
    )
    own = teachers.teacher_recipe(recipe)
    assert (own.student, own.method, own.teacher, own.size) == ("small/cnn-4", "alone", None, 16)
    assert (own.epochs, own.milestones) == (6, (3.0,))  # milestones keep their place in the longer training
    assert (own.train_limit, own.ema, own.seed) == (None, None, 0)


def test_what_teaches_the_student_does_not_decide_its_teacher(small: Recipe) -> None:
    """Pairs of one protocol that differ in weights, method and the student's learning rate have one teacher."""
    second = {"method": "dkd", "dkd_beta": 2.0, "rival_warmup": 20, "student_logit_tap": "fc", "lr": 0.01}
    own = teachers.teacher_recipe(small.changed({"teacher_lr": 0.05, "label_smoothing": 0.1}))
    assert own == teachers.teacher_recipe(small.changed({**second, "teacher_lr": 0.05, "label_smoothing": 0.1}))
    assert (own.lr, own.label_smoothing) == (0.05, 0.1)
    assert teachers.teacher_recipe(small.changed({"lr": 0.03})).lr == 0.03


def test_a_teacher_is_trained_by_settings_of_its_own(small: Recipe) -> None:
    """From scratch the student's, unless that one is fine-tuned; with weights those of fine-tuning, whatever it has."""
    short = small.changed({"epochs": 1, "teacher_epochs": None, "lr": 0.02, "optimizer": "sgd", "label_smoothing": 0.1})
    scratch = teachers.teacher_recipe(short)
    assert (scratch.epochs, scratch.optimizer, scratch.lr, scratch.label_smoothing) == (30, "sgd", 0.02, 0.1)
    assert teachers.teacher_recipe(short.changed({"epochs": 40})).epochs == 40
    tuned = teachers.teacher_recipe(short.changed({"schedule": "step", "milestones": [0.5]}), pretrained=True)
    assert (tuned.optimizer, tuned.lr, tuned.weight_decay, tuned.schedule) == ("adamw", 3e-4, 0.05, "cosine")
    assert (tuned.epochs, tuned.warmup_epochs, tuned.pretrained) == (10, 1.0, True)
    swept = short.changed({"lr": 0.5, **keeping_teacher(short, {"lr": 0.5})})
    assert teachers.teacher_recipe(swept, pretrained=True) == teachers.teacher_recipe(short, pretrained=True)
    own = short.changed({"teacher_lr": 2e-4, "teacher_epochs": 4, "teacher_settings": ["batch_size=16"]})
    tuned = teachers.teacher_recipe(own, pretrained=True)
    assert (tuned.lr, tuned.epochs, tuned.batch_size, tuned.warmup_epochs) == (2e-4, 4, 16, 0.4)
    fine_tuned = Recipe(data="digits", student="timm/resnet18", teacher="timm/resnet34", pretrained=True, epochs=50)
    scratch = teachers.teacher_recipe(fine_tuned)
    assert (fine_tuned.optimizer, scratch.optimizer, scratch.lr, scratch.epochs) == ("adamw", "sgd", 0.05, 50)


def test_a_hub_teacher_whose_head_does_not_fit_is_fine_tuned_from_the_hub_where_the_head_is_used(
    small: Recipe, data: Data, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = models.build
    made: list[dict[str, object]] = []

    def published(name: str, **options: object) -> models.Model:
        """As if the hub had weights of other classes."""
        made.append(options)
        if options.get("pretrained"):
            model = build(name, num_classes=data_classes, size=8)
            return models.Model(**{**vars(model), "weights": "hub", "new_head": True})
        return build(name, **options)  # pyright: ignore[reportArgumentType]

    data_classes = len(data.classes)
    monkeypatch.setattr(models, "build", published)
    trainer, said = Trainer(finished), list[str]()
    features_only = small.changed({"method": "projector"})
    got = teachers.build_teacher(features_only, data, tmp_path / "a", trainer, said.append)
    assert got is not None
    assert got.weights == "hub"
    assert trainer.asked == []
    got = teachers.build_teacher(small, data, tmp_path / "b", trainer, said.append)
    assert got is not None
    assert got.weights.startswith("run:")
    assert trainer.asked[0].pretrained
    assert "its head does not fit these labels; fine-tuning it first, for 2 epochs" in said[-2]
    assert re.search(r"top-1 \S+% on 500 validation images \(chance 10.00%\)$", said[-1])
    teachers.build_teacher(features_only.changed({"fit_teacher": True}), data, tmp_path / "c", trainer, said.append)
    assert "fine-tuning it first" in said[-2] or "using the one trained before" in said[-2]


def test_no_weights_and_no_labels_is_an_error_not_a_random_teacher(small: Recipe, data: Data, tmp_path: Path) -> None:
    recipe = small.changed({"labels": False, "method": "projector", "train_limit": None})
    with pytest.raises(UserError, match="without labels it cannot be trained here; give --teacher-weights"):
        teachers.build_teacher(recipe, data, tmp_path / "a", lambda own, where: None, lambda text: None)


def test_classes_of_a_teacher_without_labels(small: Recipe, data: Data, finished: Path) -> None:
    recipe = small.changed({"labels": False, "method": "kd"})
    run = next((finished.parent / "teachers").iterdir())
    assert teachers.teacher_classes(recipe.changed({"teacher_weights": str(run)}), data) == 10
    assert teachers.teacher_classes(recipe.changed({"teacher": "torchvision/resnet18"}), data) == 1000
    assert teachers.teacher_classes(recipe.changed({"method": "projector"}), data) == 0
    with pytest.raises(UserError, match="no pretrained weights exist for small/cnn-4"):
        teachers.teacher_classes(recipe, data)


def test_a_wrong_tap_is_told_before_a_teacher_is_trained(small: Recipe, data: Data) -> None:
    with pytest.raises(UserError, match=r'no submodule "conv33" in SmallCNN \(did you mean "conv3"\?\)'):
        teachers.rehearse(small.changed({"teacher_tap": "conv33"}), data)
    with pytest.raises(UserError, match="needs equal widths"):
        teachers.rehearse(small.changed({"projector": "identity"}), data)


def test_own_classes_are_those_of_the_published_weights() -> None:
    assert models.own_classes("timm/resnet18") == 1000
    assert issubclass(WeightsUnavailable, UserError)


def test_a_teacher_is_found_again_whatever_the_machine(
    small: Recipe, data: Data, finished: Path, tmp_path: Path
) -> None:
    trainer, said = Trainer(finished), list[str]()
    teachers.build_teacher(small.changed({"device": "auto"}), data, tmp_path / "a", trainer, said.append)
    teachers.build_teacher(small.changed({"workers": 1, "seed": 7}), data, tmp_path / "b", trainer, said.append)
    assert len(trainer.asked) == 1
    teachers.build_teacher(small.changed({"teacher_epochs": 3}), data, tmp_path / "c", trainer, said.append)
    assert len(trainer.asked) == 2


@pytest.mark.parametrize("name", [name for name in ONES_OWN if name not in ("longest", "shorter", "schedule")])
def test_the_trials_of_a_sweep_have_the_teacher_of_the_recipe(name: str, small: Recipe) -> None:
    """Whatever of a training is swept."""
    base = small.changed(
        {
            "size": 8,
            "train_limit": None,
            "schedule": "step",
            "milestones": (1,),
            "warmup_epochs": 0.5,
            "epochs": 4,
            "augmentation": "standard",
        }
    )
    other: dict[str, object] = {
        "epochs": 8,
        "size": 16,
        "augmentation": "none",
        "optimizer": "adamw",
        "flip": True,
        "accumulate": 3,
        "clip": 2.0,
    }
    value = other.get(name, not getattr(base, name) if isinstance(getattr(base, name), bool) else 0.123)
    value = 7 if name == "batch_size" else value
    trial = base.changed({name: value, **keeping_teacher(base, {name: value})})
    assert teachers.teacher_recipe(trial) == teachers.teacher_recipe(base)
    assert getattr(trial, name) != getattr(base, name)
    assert teachers.teacher_recipe(base.changed({name: value})) != teachers.teacher_recipe(base)
    again = Recipe.from_yaml(trial.to_yaml())
    assert teachers.teacher_recipe(again) == teachers.teacher_recipe(base)


def test_a_sweep_over_the_size_asks_for_the_teachers_own(small: Recipe) -> None:
    with pytest.raises(UserError, match="give --teacher-size"):
        keeping_teacher(small, {"size": 16})


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["batchsize=3"], "teacher_settings: expected SETTING=VALUE of "),
        (["alpha=3"], "teacher_settings: expected SETTING=VALUE of "),
        (["lr"], "teacher_settings: lr: expected a number above 0"),
        (["batch_size=0"], "teacher_settings: batch_size: expected a whole number from 1 to 1,000,000,000, got '0'"),
    ],
)
def test_wrong_settings_of_a_teacher_are_told_in_one_line(words: list[str], line: str, small: Recipe) -> None:
    with pytest.raises(UserError) as raised:
        small.changed({"teacher_settings": words})
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


def test_other_weights_at_the_same_path_make_another_teacher(
    small: Recipe, data: Data, finished: Path, tmp_path: Path
) -> None:
    """Not the path: fewer classes, so that the head does not fit and the teacher is fine-tuned from a file."""
    file = tmp_path / "weights.safetensors"
    trainer, said = Trainer(finished), list[str]()
    for classes in (3, 4):
        save_file(models.build("small/cnn-4", num_classes=classes).module.state_dict(), file)
        teachers.build_teacher(
            small.changed({"teacher_weights": str(file)}), data, tmp_path / "a", trainer, said.append
        )
    assert len(trainer.asked) == 2
    file.rename(tmp_path / "moved.safetensors")
    moved = small.changed({"teacher_weights": str(tmp_path / "moved.safetensors")})
    teachers.build_teacher(moved, data, tmp_path / "b", trainer, said.append)
    assert "using the one trained before" in said[-2]
    assert len(trainer.asked) == 2


def test_a_student_with_fewer_images_has_the_same_teacher(
    small: Recipe, data: Data, finished: Path, tmp_path: Path
) -> None:
    trainer, said = Trainer(finished), list[str]()
    for count in (300, 200, None):
        recipe = small.changed({"train_limit": count, "task_weight": 0.5})
        teachers.build_teacher(recipe, build_data(recipe), tmp_path / "a", trainer, said.append)
    assert len(trainer.asked) == 1
