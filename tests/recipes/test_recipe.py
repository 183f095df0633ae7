"""The recipe: what it refuses and in which words, and its way through YAML and back."""

import inspect
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

from limbeck.errors import UserError
from limbeck.recipes import NAMED, Recipe, named
from limbeck.recipes.fields import Settings
from limbeck.recipes.parsing import read_value
from limbeck.recipes.recipe import DEFAULTS, GROUPS, NOT_COMPARED, READS, fields_of, without_unread
from limbeck.recipes.roles import NUMBER, RESUMABLE, Role, unread
from limbeck.recipes.values import STAGE_METHODS, FeatureLoss, Method, Norm, Pool

GOOD: dict[str, Any] = {"data": "digits", "student": "small/cnn-2", "teacher": "small/cnn-32"}
ALONE: dict[str, Any] = {"data": "digits", "student": "small/cnn-2", "method": "alone"}

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"epoch": 3}, "unknown setting 'epoch' (did you mean \"epochs\"?)"),
    ({"epochs": "abc"}, "epochs: expected a whole number from 1 to 1,000,000,000, got 'abc'"),
    ({"epochs": True}, "epochs: expected a whole number from 1 to 1,000,000,000, got True"),
    ({"epochs": 1.5}, "epochs: expected a whole number from 1 to 1,000,000,000, got 1.5"),
    ({"lr": float("nan")}, "lr: expected a number above 0 and of at most 1e+30, got nan"),
    ({"lr": float("inf")}, "lr: expected a number above 0 and of at most 1e+30, got inf"),
    ({"alpha": 0.5}, "alpha: expected a number from 1 to 1,000, got 0.5"),
    ({"subset": 0}, "subset: expected a number above 0 and of at most 1, got 0"),
    ({"subset": 1.1}, "subset: expected a number above 0 and of at most 1, got 1.1"),
    ({"val_share": 1.0}, "val_share: expected a number above 0 and below 1, got 1.0"),
    ({"momentum": 1}, "momentum: expected a number of at least 0 and below 1, got 1"),
    ({"seed": -1}, "seed: expected a whole number from 0 to 4,294,967,295, got -1"),
    ({"size": 3}, "size: expected a whole number from 4 to 4,096 or None, got 3"),
    ({"labels": "maybe"}, "labels: expected true or false, got 'maybe'"),
    ({"name": "a/b"}, "name: expected a text of letters, digits and . _ + -, got 'a/b'"),
    ({"teacher": ""}, "teacher: expected a text of one line or None, got ''"),
    ({"data": 3}, "data: expected a text of one line, got 3"),
    (
        {"method": "projektor"},
        "method: expected one of alone, kd, projector, projector+kd, projector+dkd, stages, stages+kd, fitnet, at, "
        "nst, sp, rkd, pkt, cc, vid, crd, review, dkd, dist, fgd, pkd, cwd, got 'projektor' "
        '(did you mean "projector"?)',
    ),
    ({"optimizer": "adam"}, "optimizer: expected one of sgd, adamw, got 'adam' (did you mean \"adamw\"?)"),
    (
        {"milestones": [1, "x"]},
        "milestones: expected any number of values, each a number above 0",
    ),
    ({"epochs": 0, "alpha": 0}, "alpha: expected a number from 1 to 1,000, got 0; epochs: expected a whole number"),
    ({"student": None}, "student: missing; name the model to train, for example timm/resnet18"),
    ({"teacher": None}, "teacher: missing; method stages+kd needs one (method alone does not)"),
    ({"teacher": None, "method": "kd"}, "teacher: missing; method kd needs one"),
    ({"method": "alone"}, "method: alone uses no teacher, got teacher 'small/cnn-32'; `limbeck train`"),
    ({**ALONE, "teacher": None, "teacher_weights": "x"}, "teacher_weights: nothing reads it with method alone, got x"),
    ({**ALONE, "teacher": None, "teacher_size": 32}, "teacher_size: nothing reads it with method alone, got 32"),
    (
        {"student_norm": "l2"},
        "student_norm: feature_loss log_correlation is defined on batch norm on both sides, got 'l2'",
    ),
    ({"teacher_norm": "none"}, "teacher_norm: feature_loss log_correlation is defined on batch norm on both sides"),
    ({"method": "kd", "logit_loss": "dkd", "labels": False}, "logit_loss: dkd needs labels"),
    ({"method": "dkd", "labels": False}, "labels: method dkd treats the true class apart, so it needs them"),
    ({"method": "projector+dkd", "labels": False}, "labels: method dkd treats the true class apart"),
    ({"method": "stages+kd", "cache_views": 2}, "cache_views: method stages+kd reads whole maps, which are too large"),
    ({"method": "stages", "student_logit_tap": "fc"}, "student_logit_tap: nothing reads it with method stages, got fc"),
    ({**ALONE, "teacher": None, "labels": False}, "labels: method alone learns from the labels only"),
    ({"labels": False, "label_smoothing": 0.1}, "label_smoothing: nothing reads it with labels False, got 0.1"),
    (
        {"method": "stages", "feature_weight": 0, "task_weight": 0},
        "method: every weight of stages is zero, so nothing would be learned",
    ),
    ({"feature_weight": 0, "labels": False}, "method: every weight of projector is zero"),
    ({"train_limit": 5, "subset": 0.5}, "train_limit: give either train_limit (5) or subset (0.5), not both"),
    ({"precision": "fp16", "device": "cpu"}, "precision: fp16 is for a GPU, got device cpu"),
    ({"feature_loss": "correlation_power", "student_norm": "l2"}, "student_norm: feature_loss correlation_power is"),
    ({"feature_loss": "gaussian_wasserstein"}, "student_pool: feature_loss gaussian_wasserstein compares"),
    ({"method": "at", "rival_weight": 0, "task_weight": 0}, "method: every weight of at is zero"),
    ({"schedule": "step"}, "milestones: schedule step needs the epochs of its steps, for example 30 60 90"),
    ({"milestones": [3]}, "milestones: nothing reads it with schedule cosine, got 3"),
    ({"schedule": "step", "milestones": [3, 2]}, "milestones: expected rising epochs below epochs (100), got 3 2"),
    ({"schedule": "step", "milestones": [3, 3]}, "milestones: expected rising epochs below epochs (100), got 3 3"),
    ({"schedule": "step", "milestones": [100]}, "milestones: expected rising epochs below epochs (100), got 100"),
    (
        {"bad_number_limit": 3},
        "bad_number_limit: nothing reads it with on_bad_numbers stop, got 3; leave it out, or choose "
        "on_bad_numbers skip, lower",
    ),
    ({"on_bad_numbers": "lower", "bad_number_limit": 0}, "bad_number_limit: expected"),
    ({"on_bad_numbers": "ignore"}, "on_bad_numbers: expected"),
    ({"warmup_epochs": 100}, "warmup_epochs: expected less than epochs (100), got 100"),
]


@pytest.mark.parametrize(("changes", "line"), WRONG, ids=[", ".join(changes) for changes, _ in WRONG])
def test_wrong_settings_are_refused_in_one_line(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as caught:
        Recipe(**{**GOOD, **changes})
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


UNREAD: list[tuple[dict[str, Any], str, Any, str]] = [
    ({"method": "kd"}, "alpha", 2.0, "method projector, projector+kd, projector+dkd, stages, stages+kd"),
    ({"method": "kd"}, "projector", "mlp", "method projector, projector+kd, projector+dkd, stages, stages+kd"),
    ({"method": "kd"}, "projector_hidden", 9, "method projector, projector+kd, projector+dkd, stages, stages+kd"),
    ({}, "projector_hidden", 9, "projector mlp"),
    ({}, "projector_count", 9, "projector ensemble"),
    ({}, "projector_rank", 9, "projector low_rank"),
    ({"feature_loss": "l1"}, "alpha", 2.0, "feature_loss log_sum, log_correlation, correlation_power"),
    ({"method": "projector"}, "logit_loss", "dist", "method kd, projector+kd, stages+kd"),
    (
        {"method": "projector"},
        "temperature",
        2.0,
        "method kd, projector+kd, stages+kd or task detection, segmentation or method dkd, dist, projector+dkd, cwd or "
        "feature_loss feature_kl",
    ),
    ({"logit_loss": "mlkd", "method": "kd"}, "temperature", 2.0, "logit_loss kl, standardized_kl, dkd, nkd, dist or"),
    ({"method": "kd"}, "dkd_beta", 2.0, "method dkd, projector+dkd or logit_loss dkd"),
    ({"method": "at"}, "rival_warmup", 2.0, "method dkd, review, projector+dkd"),
    ({"method": "review", "rival_weight": 2.0}, "review_weight", 2.0, "rival_weight None"),
    ({"method": "kd"}, "rival_weight", 2.0, "method projector+dkd, fitnet, at,"),
    ({"method": "kd"}, "teacher_tap", "fc", "method projector, projector+kd, projector+dkd, fitnet, at, nst,"),
    ({"method": "stages"}, "student_tap", "fc", "method projector, projector+kd, projector+dkd, fitnet, at, nst,"),
    ({"optimizer": "adamw"}, "momentum", 0.5, "optimizer sgd"),
    ({}, "gamma", 0.5, "schedule step"),
    ({"augmentation": "none"}, "flip", True, "augmentation standard, randaugment, strong"),
    ({"labels": False}, "task_weight", 2.0, "task detection or labels True"),
    ({"probe": "off"}, "probe_images", 9, "probe auto, a number"),
    ({"method": "kd"}, "cache_top_k", 3, "cache_views a number"),
    ({"method": "kd"}, "cache_limit", 3.0, "cache_views a number"),
    ({}, "levels", "trunk", "task detection"),
    ({}, "on_bad_annotations", "skip", "task detection"),
]


@pytest.mark.parametrize(("recipe", "name", "value", "readers"), UNREAD, ids=[f"{r} {name}" for r, name, *_ in UNREAD])
def test_what_nothing_reads_is_refused_and_falls_away_by_a_change(
    recipe: dict[str, Any], name: str, value: Any, readers: str
) -> None:
    with pytest.raises(UserError) as caught:
        Recipe(**{**GOOD, **recipe, name: value})
    assert str(caught.value).startswith(f"{name}: nothing reads it with ")
    assert f"; leave it out, or choose {readers}" in str(caught.value)
    with pytest.raises(UserError, match=f"^{name}: nothing reads it"):
        Recipe(**{**GOOD, **recipe}).changed({name: value})
    with pytest.raises(UserError, match=f"^recipe: {name}: nothing reads it"):
        Recipe.from_yaml("\n".join(f"{key}: {each}" for key, each in {**GOOD, **recipe, name: value}.items()))
    default = Recipe.model_fields[name].default
    assert Recipe(**{**GOOD, **recipe, name: default}) == Recipe(**{**GOOD, **recipe})
    wider = Recipe.shared({**GOOD, "method": "kd", **recipe, name: value})
    assert getattr(wider.changed({}), name) == default
    assert Recipe.from_yaml(wider.to_yaml()) == wider.changed({})


def test_conditions_name_settings_and_values_that_exist() -> None:
    for reads in READS.values():
        for read in reads:
            for other, wanted in read.of.items():
                for value in wanted:
                    if value != NUMBER:
                        assert read_value(value, Recipe.model_fields[other]) == value


def test_missing_data_is_named() -> None:
    with pytest.raises(UserError, match=r"^data: missing$"):
        Recipe(student="small/cnn-2", method="alone")  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "kd", "labels": False},
        {"method": "dist", "labels": False},
        {"method": "projector+dkd", "student_logit_tap": "fc"},
        {"labels": False},
        {"method": "kd", "student_norm": "batch"},  # its default
        {"feature_loss": "log_sum", "student_norm": "none", "teacher_norm": "group"},
        {"epochs": 1},
        {"alpha": 1},
        {"subset": 1},
        {"task_weight": 0},
        {"schedule": "step", "milestones": [0.5, 99.5]},
    ],
    ids=str,
)
def test_unusual_and_right_settings_are_taken(changes: dict[str, Any]) -> None:
    recipe = Recipe(**{**GOOD, **changes})
    for name, value in changes.items():
        assert getattr(recipe, name) == (tuple(value) if isinstance(value, list) else value)


def test_it_is_frozen_and_a_change_is_checked() -> None:
    recipe = Recipe(**GOOD)
    with pytest.raises(ValueError, match="frozen"):
        recipe.epochs = 3  # pyright: ignore[reportAttributeAccessIssue]
    assert recipe.changed({"epochs": 3}).epochs == 3
    assert recipe.epochs == 100
    with pytest.raises(UserError, match="epochs"):
        recipe.changed({"epochs": 0})
    with pytest.raises(UserError, match="did you mean"):
        recipe.changed({"epoch": 1})


def test_the_difference_lists_what_changed() -> None:
    recipe = Recipe(**GOOD)
    other = recipe.changed({"epochs": 40, "schedule": "step", "milestones": (10, 20), "ema": 0.99})
    assert recipe.difference(recipe) == []
    assert recipe.difference(other) == [
        "epochs: 100 -> 40",
        "schedule: cosine -> step",
        "milestones: () -> 10 20",
        "ema: None -> 0.99",
    ]


def test_every_setting_is_described_and_in_one_group() -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(Recipe.model_fields)
    assert len(set(grouped)) == len(grouped)
    assert [name for name, field in Recipe.model_fields.items() if not field.description] == []


def test_every_setting_has_one_role_and_the_lists_are_computed_from_it() -> None:
    for name, field in Recipe.model_fields.items():
        assert len([item for item in field.metadata if isinstance(item, Role)]) == 1, name
    assert fields_of("arithmetic") == ("precision", "memory_format", "compile")
    assert set(fields_of("data")) == {
        "task", "data", "val", "val_share", "classes", "void", "labels", "label_file", "on_missing_classes",
    }  # fmt: skip
    own = set(fields_of("science", of=("teacher", "both")))
    assert {"lr", "batch_size", "teacher_epochs", "subset"} <= own
    assert not {"train_limit", "ema", "task_weight", "alpha", "method", "student"} & own
    assert not set(fields_of(*RESUMABLE)) & set(fields_of("science", "data", "seed", "arithmetic"))
    assert {"probe", "loggers", "workers", "device", "checkpoint_every"} <= set(fields_of(*RESUMABLE)) & NOT_COMPARED


_PAIR = {"data": "digits", "student": "a", "teacher": "b"}
SEVERAL: tuple[dict[str, Any], ...] = (
    {**_PAIR, "method": "projector+kd"},
    {**_PAIR, "method": "projector", "projector": "mlp", "feature_loss": "log_sum"},
    {**_PAIR, "method": "projector", "projector": "ensemble"},
    {**_PAIR, "method": "projector", "projector": "low_rank"},
    {**_PAIR, "method": "projector+dkd"},
    {**_PAIR, "method": "review"},
    {**_PAIR, "method": "kd", "cache_views": 2},
    {**_PAIR, "method": "kd", "schedule": "step", "milestones": (0.5,), "on_bad_numbers": "skip"},
    {"data": "a", "task": "detection", "student": "fcos/timm/a", "teacher": "fcos/timm/b"},
    {"data": "a", "task": "segmentation", "student": "small/a", "teacher": "small/b"},
)
"""Recipes of which each number is read by one at least."""

line = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=30)
weight = st.floats(min_value=0, max_value=1e30, allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=0, max_value=1e30, exclude_min=True, allow_nan=False, allow_infinity=False)
count = st.integers(min_value=1, max_value=10**9)


OTHERS = ("alone", "fgd", "pkd")  # without a teacher, or of detectors
PARTICULAR = ("log_correlation", "correlation_power", "gaussian_wasserstein")  # about norms or pools


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    """The settings of any valid recipe of a method with a teacher, and some that it does not read."""
    epochs = draw(st.integers(1, 1000))
    method = draw(st.sampled_from([method for method in get_args(Method) if method not in OTHERS]))
    marks = draw(st.lists(st.floats(0, epochs, exclude_min=True, exclude_max=True), max_size=4, unique=True))
    values: dict[str, Any] = {
        "name": draw(st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._+-]{0,20}\Z")),
        "teacher": draw(line),
        "teacher_weights": draw(st.none() | line),
        "teacher_epochs": draw(st.none() | count),
        "teacher_tap": draw(st.none() if method in STAGE_METHODS else st.none() | line),
        "teacher_pool": draw(st.sampled_from(get_args(Pool))),
        "student": draw(line),
        "data": draw(line),
        "val": draw(st.none() | line),
        "subset": draw(st.floats(0, 1, exclude_min=True)),
        "labels": "dkd" in method or draw(st.booleans()),
        "workers": draw(st.none() | st.integers(0, 100)),
        "method": method,
        "feature_loss": draw(st.sampled_from([loss for loss in get_args(FeatureLoss) if loss not in PARTICULAR])),
        "student_norm": draw(st.sampled_from(get_args(Norm))),
        "alpha": draw(st.floats(1, 1000)),
        "feature_weight": draw(positive),
        "logit_weight": draw(positive),
        "task_weight": draw(weight),
        "epochs": epochs,
        "lr": draw(positive),
        "schedule": "step" if marks else draw(st.sampled_from(["cosine", "constant"])),
        "milestones": tuple(sorted(marks)),
        "clip": draw(st.none() | positive),
        "ema": draw(st.none() | st.floats(0, 1, exclude_min=True, exclude_max=True)),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }
    return values


@settings(max_examples=60, deadline=None)
@given(recipes())
def test_yaml_gives_back_the_same_recipe(values: dict[str, Any]) -> None:
    recipe = Recipe(**without_unread({**DEFAULTS, **values}, given=()))
    again = Recipe.from_yaml(recipe.to_yaml())
    assert again == recipe
    assert again.to_yaml() == recipe.to_yaml()


EXTREMES = (0, 1, 64, -1, 10**9, 10**24, 1e-300, 1e30, 1e308, "99999999999999999999999", "1e400", "-0", "nan")


def test_what_is_accepted_can_be_read_again() -> None:
    """As an argument and as a line of YAML the same answer, and nothing that no machine can hold."""
    numbers = [name for name, default in DEFAULTS.items() if {int, float} & set(_types(Settings.model_fields[name]))]
    assert {"epochs", "lr", "probe", "temperature", "process_timeout", "workers", "scales"} <= set(numbers)
    accepted: set[str] = set()
    refused: list[str] = []
    readers = {name: [base for base in SEVERAL if _reads(base, name)][:1] or SEVERAL[:1] for name in numbers}
    for name, value in itertools.product(numbers, EXTREMES):
        given = {**readers[name][0], name: value}
        try:
            recipe = Recipe(**given)
        except UserError as error:
            refused.append(str(error))
            with pytest.raises(UserError):
                Recipe.from_yaml(yaml.safe_dump(given))
            continue
        accepted.add(name)
        assert Recipe.from_yaml(recipe.to_yaml()) == recipe == Recipe.from_yaml(yaml.safe_dump(given))
        found = getattr(recipe, name)
        assert not isinstance(found, int) or found <= 2**32
        assert not isinstance(found, float) or found <= 1e30
    assert not any("\n" in line for line in refused)
    assert set(numbers) - accepted <= {"scales", "milestones", "longest", "void"}, "no recipe here reads these"


def _reads(base: Mapping[str, Any], name: str) -> bool:
    """Whether a recipe reads a number, of which it then has another value than the default."""
    values = {**DEFAULTS, **base, name: 2}
    return not READS.get(name) or not unread(name, {**values, "method": values["method"] or "projector"}, READS)


def _types(field: Any) -> Iterator[type]:
    """The types in an annotation, however deep."""
    parts = [field.annotation if isinstance(field, FieldInfo) else field]
    while parts:
        part = parts.pop()
        parts += get_args(part)
        if isinstance(part, type) and part is not bool:
            yield part


def test_one_word_is_a_list_of_one() -> None:
    assert Recipe.from_yaml("data: digits\nstudent: a\nmethod: alone\nloggers: wandb").loggers == ("wandb",)
    boxes = "data: a\nstudent: fcos/timm/a\nmethod: alone\ntask: detection\n"
    assert Recipe.from_yaml(boxes + "classes: cat").classes == ("cat",)
    with pytest.raises(UserError, match="scales: expected a smallest and a largest factor, got 1"):
        Recipe.from_yaml(boxes + "scales: 1")


def test_a_file_is_read_and_its_name_is_in_the_error(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("data: digits\nstudent: a\nteacher: b\nlr: 1e-3\nmilestones: []\n")  # 1e-3 is a text to YAML 1.1
    assert Recipe.from_yaml(path).lr == 0.001
    path.write_text("data: digits\nstudent: a\nteacher: b\nepocs: 3\n")
    with pytest.raises(UserError, match=r"mine\.yaml: unknown setting 'epocs' \(did you mean \"epochs\"\?\)$"):
        Recipe.from_yaml(path)


UNSAFE: dict[str, tuple[str, str]] = {
    "empty": ("", "recipe: is empty"),
    "list": ("- a", "recipe, line 1: expected lines of the form `name: value`, got a list"),
    "word": ("just words", "recipe: expected lines of the form `name: value`, got 'just words'"),
    "anchor": ("data: &a digits", "recipe, line 1: anchors and aliases"),
    "alias": ("data: *a", "recipe, line 1: anchors and aliases"),
    "bomb": (
        "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n",
        "recipe, line 1: anchors and aliases (& and *) are not used in a recipe; write the value out",
    ),
    "merge": ("<<: {data: x}", "recipe, line 1: a recipe is flat"),
    "merge of nothing": ("<<: []", "recipe, line 1: expected the name of a setting, got '<<'"),
    "code": ("data: !!python/object/apply:os.system ['true']", "recipe, line 1: tags such as"),
    "tag of everything": ("!!map {data: x}", "recipe, line 1: tags such as"),
    "twice": ("epochs: 1\nlr: 1\nepochs: 2", "recipe, line 3: epochs is given a second time (first in line 1)"),
    "nested": ("data: {a: 1}", "recipe, line 1: a recipe is flat, one `name: value` a line"),
    "list in a list": ("milestones: [[1]]", "recipe, line 1: a recipe is flat"),
    "deep": ("[" * 50_000, "recipe, line 1: expected lines"),
    "deep value": ("data: " + "[" * 50_000, "recipe, line 1: a recipe is flat"),
    "key that is no name": ("yes: 1", "recipe, line 1: expected the name of a setting, got 'yes'"),
    "two documents": ("---\ndata: a\n---\ndata: b", "recipe, line 3: not YAML"),
    "syntax": ("data: b: c", "recipe, line 1: not YAML (mapping values are not allowed here)"),
    "control": ("data: \x00", "recipe: not YAML (character"),
    "date": ("name: 2024-99-99", "recipe: a value that cannot be read (month must be in 1..12)"),
    "endless number": ("seed: " + "9" * 5000, "recipe: a value that cannot be read"),
    "long": ("data: " + "x" * 1_000_001, "recipe: larger than a recipe can be (1 MB)"),
}


@pytest.mark.parametrize(("text", "line"), UNSAFE.values(), ids=list(UNSAFE))
def test_yaml_that_no_recipe_needs_is_refused(text: str, line: str) -> None:
    with pytest.raises(UserError) as caught:
        Recipe.from_yaml(text)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_recipe_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nope\.yaml: cannot be read \(No such file or directory\)"):
        Recipe.from_yaml(tmp_path / "nope.yaml")
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        Recipe.from_yaml(tmp_path)
    (tmp_path / "big.yaml").write_text("data: " + "é" * 600_000, encoding="utf-8")
    with pytest.raises(UserError, match=r"big\.yaml: larger than a recipe can be"):
        Recipe.from_yaml(tmp_path / "big.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"bytes\.yaml: not a text file \(UTF-8\)"):
        Recipe.from_yaml(tmp_path / "bytes.yaml")


@pytest.mark.parametrize("name", list(NAMED))
def test_a_named_recipe_is_valid_and_has_a_record(name: str) -> None:
    recipe = named(name)
    assert recipe.name == name
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe.changed({})  # what other methods read is a comment
    record = inspect.getdoc(NAMED[name]) or ""
    for entry in ("Paper:", "Row:", "Expect:", "Command:", "Cost:", "Ours:", "Differences:"):
        assert f"\n{entry}" in record
    assert f"--recipe {name}" in record


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UserError, match=r"^no recipe 'digit' \(did you mean \"digits\"\?\); `limbeck"):
        named("digit")


def test_the_published_recipes_have_their_sources_numbers() -> None:
    imagenet = named("imagenet-resnet34-resnet18")
    assert (imagenet.lr, imagenet.weight_decay, imagenet.epochs, imagenet.batch_size) == (0.1, 1e-4, 100, 256)
    assert (imagenet.milestones, imagenet.gamma, imagenet.schedule) == ((30, 60, 90), 0.1, "step")
    assert (imagenet.feature_loss, imagenet.alpha, imagenet.feature_weight) == ("log_sum", 4, 2)
    assert (imagenet.method, imagenet.logit_weight, imagenet.temperature) == ("projector+kd", 1, 1)
    crd = named("cifar100-resnet32x4-resnet8x4")
    assert (crd.lr, crd.weight_decay, crd.epochs, crd.batch_size) == (0.05, 5e-4, 240, 64)
    assert (crd.milestones, crd.projector, crd.projector_hidden) == ((150, 180, 210), "mlp", 1024)
    deit = named("imagenet-deit-ti")
    assert (deit.optimizer, deit.lr, deit.weight_decay, deit.epochs) == ("adamw", 5e-4, 0.05, 300)
    assert (deit.warmup_epochs, deit.label_smoothing, deit.augmentation) == (20, 0.1, "strong")
    assert (deit.feature_loss, deit.feature_weight, deit.logit_weight, deit.temperature) == ("log_correlation", 1, 1, 1)
    assert (deit.student_tap, deit.student_logit_tap, deit.teacher_tap) == ("patches", "head_conv", None)
    vkd = named("imagenet-vkd-deit-ti")
    assert (vkd.projector, vkd.student_norm, vkd.teacher_norm) == ("orthogonal", "none", "layer")
    assert (vkd.feature_loss, vkd.feature_weight, vkd.warmup_epochs, vkd.lr) == ("smooth_l1", 1, 0, 5e-4)
    assert named("imagenet-deit-ti-kd") == deit.changed({"name": "imagenet-deit-ti-kd", "method": "kd"})


DETECTORS = {"task": "detection", "teacher": "fcos/timm/resnet34", "student": "fcos/timm/resnet18"}


@pytest.mark.parametrize(
    ("changes", "method"),
    [
        ({}, "stages+kd"),
        ({"labels": False}, "projector"),
        ({"labels": 0}, "projector"),
        ({"labels": "false"}, "projector"),
        ({"labels": "No"}, "projector"),
        ({"labels": 1}, "stages+kd"),
        ({"student_tap": "bn3"}, "projector+kd"),
        ({"teacher_tap": "bn3"}, "projector+kd"),
        ({"cache_views": 2}, "projector+kd"),
        (DETECTORS, "projector"),
    ],
)
def test_the_method_that_is_not_named(changes: dict[str, object], method: str) -> None:
    recipe = Recipe(**{**GOOD, **changes})
    assert recipe.method == method
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


@pytest.mark.parametrize(
    ("method", "weights"), [("projector+kd", (2, 4)), ("kd", (2, 4)), ("stages", (32, 4)), ("stages+kd", (32, 16))]
)
def test_weights_that_are_not_named_are_the_methods(method: str, weights: tuple[float, float]) -> None:
    recipe = Recipe(**{**GOOD, "method": method})
    assert (recipe.full_feature_weight, recipe.full_logit_weight) == weights
    named = Recipe.shared({**recipe.model_dump(), "feature_weight": 3.0, "logit_weight": 5.0})
    assert (named.full_feature_weight, named.full_logit_weight) == (3, 5)
