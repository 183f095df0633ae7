"""What is chosen where nothing is named, and that what is named stays."""

from pathlib import Path

import pytest

from limbeck.cli import distill
from limbeck.recipes.recipe import Recipe

PAIR = {"data": "digits", "student": "small/cnn-2", "teacher": "small/cnn-4"}


def training(recipe: Recipe) -> tuple[str, float, float, float]:
    return recipe.optimizer, recipe.lr, recipe.weight_decay, recipe.warmup_epochs


def test_a_student_with_weights_is_fine_tuned() -> None:
    assert training(Recipe(**PAIR)) == ("sgd", 0.05, 5e-4, 0.0)
    for start in ({"pretrained": True}, {"student_weights": "a.pth"}):
        assert training(Recipe(**PAIR, **start)) == ("adamw", 3e-4, 0.05, 1.0)
        assert training(Recipe(**PAIR, **start, epochs=1)) == ("adamw", 3e-4, 0.05, 0.1)
    assert training(Recipe(**PAIR, pretrained=True, labels=False, lr=0.1)) == ("adamw", 0.1, 0.05, 1.0)
    assert training(Recipe(**PAIR, pretrained=True, optimizer="sgd")) == ("sgd", 0.01, 5e-4, 1.0)
    assert training(Recipe(**PAIR, optimizer="adamw")) == ("adamw", 5e-4, 0.05, 0.0)


def test_what_was_chosen_is_kept_by_what_is_made_of_it() -> None:
    recipe = Recipe(**PAIR, pretrained=True, epochs=2)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert training(recipe.changed({"pretrained": False})) == training(recipe)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--recipe folder --data digits --pretrained", ("adamw", 3e-4, 0.05, 1.0)),
        (
            "--recipe folder --data digits --pretrained --lr 0.1 --optimizer sgd --frozen-norms False",
            ("sgd", 0.1, 5e-4, 1.0),
        ),
        ("--recipe folder --data digits --pretrained --no-frozen-norms --flip", ("adamw", 3e-4, 0.05, 1.0)),
        ("--recipe cifar100-resnet56-resnet20 --student-weights a.pth", ("sgd", 0.05, 5e-4, 0.0)),
        ("--recipe FILE --pretrained", ("adamw", 3e-4, 0.05, 0.3)),
        ("--recipe RATE --pretrained", ("sgd", 0.02, 5e-4, 0.0)),
    ],
)
def test_a_recipe_keeps_what_it_names(
    words: str, expected: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learning rate that a recipe names belongs to the optimizer of that recipe."""
    text = "data: digits\nstudent: small/cnn-2\nteacher: small/cnn-4\nepochs: 3\n"
    (tmp_path / "file.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "rate.yaml").write_text(f"{text}lr: 0.02\n", encoding="utf-8")
    given = words.replace("FILE", str(tmp_path / "file.yaml")).replace("RATE", str(tmp_path / "rate.yaml")).split()
    made: list[Recipe] = []
    monkeypatch.setattr(distill, "dry_run", lambda recipe, folder: made.append(recipe) or 0)
    assert distill.main([*given, "--dry-run"]) == 0
    assert training(made[0]) == expected
    assert made[0].frozen_norms == (expected[0] == "adamw" and "--no-frozen-norms" not in given)
    assert made[0].flip == (True if "--flip" in given else None)
