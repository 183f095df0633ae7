"""Axes of a sweep: what a word means, and what is wrong with one in a line."""

import pytest

from limbeck.errors import UserError
from limbeck.recipes.recipe import Recipe
from limbeck.studies.search_space import (
    Choices,
    Range,
    changed,
    check_space,
    combinations,
    described,
    is_grid,
    parse_space,
)

BASE = Recipe(data="digits", student="small/cnn-2", teacher="small/cnn-32", epochs=3)


@pytest.mark.parametrize(
    ("word", "axis"),
    [
        ("alpha=1,2,4", Choices("alpha", (1.0, 2.0, 4.0))),
        ("student-norm=batch,none", Choices("student_norm", ("batch", "none"))),
        ("clip=None,1", Choices("clip", (None, 1.0))),
        ("inverted=true,false", Choices("inverted", (True, False))),
        ("projector_hidden=256,1024", Choices("projector_hidden", (256, 1024))),
        ("student_weights=../a,../b", Choices("student_weights", ("../a", "../b"))),
        ("student_tap=None,layer2", Choices("student_tap", (None, "layer2"))),
        ("lr=0.001..0.1:log", Range("lr", 0.001, 0.1, log=True, whole=False)),
        ("alpha=1..6", Range("alpha", 1.0, 6.0, log=False, whole=False)),
        ("batch_size=16..256:log", Range("batch_size", 16, 256, log=True, whole=True)),
    ],
)
def test_a_word_is_an_axis(word: str, axis: Choices | Range) -> None:
    assert parse_space([word]) == (axis,)
    assert parse_space([str(axis)]) == (axis,)


FAULTS = [
    ([], "--space: missing; name the settings and their values, for example alpha=1,2,4"),
    (["alpha"], "--space: expected SETTING=VALUES, got 'alpha'"),
    (["=1,2"], "--space: expected SETTING=VALUES, got '=1,2'"),
    (["feature_wieght=1,2"], "--space: unknown setting 'feature_wieght' (did you mean \"feature_weight\"?)"),
    (["alpha=1,2", "alpha=4,5"], "--space: alpha is given twice"),
    (["alpha=1,,2"], "--space: alpha: a value is missing"),
    (["alpha="], "--space: alpha: a value is missing"),
    (["alpha=2"], "--space: alpha has one value, which is no choice; give --alpha 2"),
    (["alpha=2,2.0"], "--space: alpha has a value twice: 2,2.0"),
    (["alpha=0.5,2"], "--space: alpha: expected a number from 1 to 1,000, got '0.5'"),
    (["alpha=true,2"], "--space: alpha: expected a number from 1 to 1,000, got 'true'"),
    (["student_norm=batch,bach"], "got 'bach' (did you mean \"batch\"?)"),
    (["student_norm=batch..layer"], "--space: student_norm: expected one of batch, layer"),
    (["alpha=4..2"], "--space: alpha: expected a smaller and a larger number, got 4..2"),
    (["alpha=2..2"], "--space: alpha: expected a smaller and a larger number, got 2..2"),
    (["alpha=1.."], "--space: alpha: a value is missing"),
    (["clip=None..2"], "--space: clip: expected a smaller and a larger number, got None..2"),
    (["alpha=1..4:lgo"], "--space: alpha: after a range expected :log or nothing, got ':lgo'"),
    (["feature_weight=0..4:log"], "--space: feature_weight: a range of factors (:log) begins above 0, got 0..4"),
    (["batch_size=1.5..4"], "--space: batch_size: expected a whole number from 1 to 1,000,000,000, got '1.5'"),
    (["seed=0,1"], "--space: seed cannot be swept: the best setting would be the luckiest seed"),
    (["data=a,b"], "--space: data cannot be swept: runs are compared on the same images"),
    (["precision=float32,bf16"], "--space: precision cannot be swept: all trials have one arithmetic"),
    (["teacher_epochs=3,4"], "--space: teacher_epochs cannot be swept: all trials have one teacher"),
    (["workers=1,2"], "--space: workers cannot be swept: it does not decide the student"),
    (["milestones=1,2"], "--space: milestones takes several values at once, and cannot be swept"),
]


@pytest.mark.parametrize(("words", "message"), FAULTS, ids=[" ".join(words) for words, _ in FAULTS])
def test_what_is_no_axis_is_told_in_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_space(words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_combinations_are_all_lists_and_the_ends_of_ranges() -> None:
    space = parse_space(["alpha=1,2", "feature_weight=0.5..8:log"])
    assert [tuple(each.values()) for each in combinations(space)] == [(1, 0.5), (1, 8), (2, 0.5), (2, 8)]
    assert not is_grid(space)
    assert is_grid(space[:1])


def test_what_was_drawn_is_rounded_within_its_range() -> None:
    axis = Range("lr", 0.001234, 0.1, log=True, whole=False)
    assert [axis.rounded(value) for value in (0.012345, 0.0012341, 0.1)] == [0.0123, 0.001234, 0.1]
    assert Range("batch_size", 1, 9999, log=False, whole=True).rounded(1234) == 1234
    assert described({"lr": 0.0123, "alpha": 4.0, "clip": None}) == "lr 0.0123, alpha 4, clip None"


def test_combinations_that_contradict_themselves_are_counted_and_refused_only_together() -> None:
    space = parse_space(["feature_loss=log_correlation,log_sum", "teacher_norm=batch,none"])
    assert check_space(BASE, space) == 1
    with pytest.raises(UserError, match="no combination is a recipe; teacher_norm layer: teacher_norm: feature_loss"):
        check_space(BASE, parse_space(["teacher_norm=layer,none"]))


def test_methods_share_a_fitted_teacher_and_alone_has_none() -> None:
    space = parse_space(["method=alone,kd,projector", "student_norm=batch,none"])
    recipes = [
        changed(BASE, space, settings) for settings in combinations(space) if settings["student_norm"] == "batch"
    ]
    assert [recipe.teacher for recipe in recipes] == [None, "small/cnn-32", "small/cnn-32"]
    assert [recipe.fit_teacher for recipe in recipes] == [False, True, True]
    assert changed(BASE, space, {"method": "kd", "student_norm": "none"}).method == "kd"  # which projects nothing
