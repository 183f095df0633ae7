"""Arithmetic: measured once, remembered, the same in every process, and never a reason for a run not to start."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from limbeck.assembly import arithmetic
from limbeck.assembly.arithmetic import Settled, settle
from limbeck.distiller import Distiller
from limbeck.distributed import collectives
from limbeck.errors import UserError
from limbeck.recipes.recipe import Recipe
from limbeck.runs import run as runs
from limbeck.runs.claim import claim
from limbeck.training import precision as hardware
from limbeck.training.compiling import Compiling, may_pay, pays
from limbeck.training.precision import Arithmetic, Measurement

CPU = torch.device("cpu")
AUTO = {"precision": "auto", "memory_format": "auto"}
SECONDS = {"float32 contiguous": 0.3, "float32 channels_last": 0.2, "bf16 contiguous": 0.1, "bf16 channels_last": 0.15}


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The memory's file, in a folder of the test."""
    monkeypatch.setattr(arithmetic, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache" / arithmetic.FILE


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What was measured; models count as large, and a measurement takes no time."""
    found: list[list[str]] = []

    def measure(
        distiller: Distiller, batch: Any, choice: list[Arithmetic], device: torch.device, *, steps: int
    ) -> Measurement:
        found.append([one.name for one in choice])
        return Measurement({one.name: SECONDS[one.name] for one in choice}, {}, waited=0.01, is_sure=True)

    monkeypatch.setattr(hardware, "measure", measure)
    monkeypatch.setattr(hardware, "SMALL", 1.0)
    monkeypatch.setattr(hardware, "bf16_is_native", lambda device: True)
    return found


def settled(
    recipe: Recipe, *, rows: int = 8, width: int = 4, device: torch.device = CPU, steps: int = 10_000
) -> Settled:
    distiller = tiny.distiller()
    if width != 4:
        distiller.student = tiny.Net(width)
    return settle(recipe, distiller, tiny.Batch(*tiny.images(rows)), device, steps=steps)


def test_it_is_measured_once_and_then_remembered(small: Recipe, memory: Path, measured: list[list[str]]) -> None:
    recipe = small.changed(AUTO)
    first, second = settled(recipe), settled(recipe.changed({"seed": 7, "epochs": 9}))
    assert measured == [list(SECONDS)]
    assert first.arithmetic.name == second.arithmetic.name == "bf16 contiguous"
    assert first.arithmetic.seconds == second.arithmetic.seconds == SECONDS
    assert "cpu: bf16, contiguous (measured in 0.0 s: " in first.lines[0]
    assert "bf16 contiguous 1.00, bf16 channels_last 1.50; not compiled, which saves little on cpu)" in first.lines[0]
    assert "measured on 20" in second.lines[-1]
    assert "float32 channels_last 2.00, bf16 contiguous 1.00" in second.lines[-1]
    assert {path.suffix for path in memory.parent.iterdir()} <= {".json", ".lock"}


@pytest.mark.parametrize("other", [{"rows": 6}, {"width": 6}])
def test_another_step_is_measured_anew(
    small: Recipe, memory: Path, measured: list[list[str]], other: dict[str, int]
) -> None:
    settled(small.changed(AUTO))
    settled(small.changed(AUTO), **other)
    assert len(measured) == 2
    assert len(json.loads(memory.read_text())) == 2


def test_another_machine_is_measured_anew(
    small: Recipe, memory: Path, measured: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    settled(small.changed(AUTO))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    settled(small.changed(AUTO))
    monkeypatch.setattr(arithmetic, "name_of", lambda device: "a faster one")
    settled(small.changed(AUTO))
    assert len(measured) == 3


def test_what_the_recipe_says_is_taken_and_nothing_measured(
    small: Recipe, memory: Path, measured: list[list[str]]
) -> None:
    recipe = small.changed({"precision": "bf16", "memory_format": "channels_last", "compile": "on"})
    found = settled(recipe)
    assert found.arithmetic.name == "bf16 channels_last"
    assert found.compiles
    assert found.lines == ["cpu: bf16, channels_last, compiled (as the recipe says)"]
    assert settled(small.changed({"compile": "off"})).lines == ["cpu: float32, contiguous (as the recipe says)"]
    assert measured == []
    assert not memory.exists()


def test_one_forced_setting_leaves_the_other_to_be_measured(
    small: Recipe, memory: Path, measured: list[list[str]]
) -> None:
    assert settled(small.changed({"memory_format": "auto"})).arithmetic.name == "float32 channels_last"
    assert measured == [["float32 contiguous", "float32 channels_last"]]


def test_a_choice_that_is_not_sure_is_used_and_not_remembered(
    small: Recipe, memory: Path, measured: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load for a second must not decide for ever."""

    def busy(*_: object, **__: object) -> Measurement:
        return Measurement({"float32 contiguous": 1.0, "float32 channels_last": 4.9}, {}, waited=0.52, is_sure=False)

    with monkeypatch.context() as patched:
        patched.setattr(hardware, "measure", busy)
        found = settled(small.changed(AUTO))
    assert found.arithmetic.name == "float32 contiguous"
    assert "not sure, so not remembered; 52% of the time other processes had our cores" in found.lines[0]
    assert not memory.exists()
    assert settled(small.changed(AUTO)).arithmetic.name == "bf16 contiguous"


def test_a_run_that_is_too_short_measures_nothing_and_uses_what_is_remembered(
    small: Recipe, memory: Path, measured: list[list[str]]
) -> None:
    found = settled(small.changed(AUTO), steps=399)  # of which 2% are less than two steps of each of four candidates
    assert (found.arithmetic.name, measured) == ("float32 contiguous", [])
    assert "not measured: 399 steps are too few" in found.lines[0]
    settled(small.changed(AUTO), steps=400)
    assert len(measured) == 1
    assert settled(small.changed(AUTO), steps=399).arithmetic.name == "bf16 contiguous"


def test_small_models_are_not_measured(small: Recipe, memory: Path) -> None:
    found = settled(small.changed(AUTO))
    assert found.arithmetic.single_thread
    assert "one thread" in found.lines[0]
    assert not memory.exists()


@pytest.mark.parametrize(
    "damage",
    ["{", "[]", '{"a": 1}', '{"a": {"measured": "x", "seconds": {"b": "quick"}, "spread": {}, "waited": 0}}', "\x00"],
)
def test_a_damaged_memory_is_ignored_with_a_note(
    small: Recipe, memory: Path, measured: list[list[str]], damage: str
) -> None:
    memory.parent.mkdir()
    memory.write_text(damage)
    found = settled(small.changed(AUTO))
    assert len(found.lines) == 2
    assert "arithmetic.json cannot be read and is replaced" in found.lines[0]
    assert len(settled(small.changed(AUTO)).lines) == 1
    assert len(measured) == 1


def test_a_folder_that_cannot_be_written_costs_the_memory_only(
    small: Recipe, memory: Path, measured: list[list[str]]
) -> None:
    memory.parent.write_text("a file in its place")
    found = settled(small.changed(AUTO))
    assert found.arithmetic.name == "bf16 contiguous"
    assert "not shared" in found.lines[0]
    assert "not remembered" in found.lines[1]


def test_the_first_process_decides_and_the_others_take_its_answer(
    small: Recipe, memory: Path, measured: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    monkeypatch.setattr(collectives, "from_first", lambda text, device: sent.append(text) or text)
    first = settled(small.changed(AUTO))
    monkeypatch.setattr(collectives, "rank", lambda: 1)
    monkeypatch.setattr(collectives, "from_first", lambda text, device: sent[0] if text == "" else "")
    assert settled(small.changed(AUTO)) == first
    assert len(measured) == 1


def on_cuda(monkeypatch: pytest.MonkeyPatch, cost: Compiling | UserError) -> list[Arithmetic]:
    """A GPU of which compiling has a known cost; returns the settings that it is measured with."""
    found: list[Arithmetic] = []

    def measure(distiller: Distiller, batch: Any, chosen: Arithmetic, device: torch.device) -> Compiling:
        found.append(chosen)
        if isinstance(cost, UserError):
            raise cost
        return cost

    monkeypatch.setattr(arithmetic, "measure_compiling", measure)
    monkeypatch.setattr(arithmetic, "name_of", lambda device: "a GPU")
    return found


@pytest.mark.parametrize(
    ("steps", "compiles", "looks"),
    [(500, False, 0), (100_000, True, 1), (8000, False, 1)],
    ids=["not worth a look", "won back", "not won back"],
)
def test_compiling_has_to_be_won_back(
    small: Recipe, memory: Path, measured: list, monkeypatch: pytest.MonkeyPatch, steps: int, compiles: bool, looks: int
) -> None:
    """A step of 0.1 s, 0.01 of which compiling saves, at 100 s; so 10,000 steps win it back."""
    tried = on_cuda(monkeypatch, Compiling(start=100.0, step=0.09, plain=0.1))
    for _ in range(2):
        found = settled(small.changed(AUTO), device=torch.device("cuda"), steps=steps)
        assert found.compiles is compiles
        assert ("compiled" in found.lines[0].split("(")[0]) is compiles
        assert "compil" in found.lines[0].split("(")[1]
    assert len(tried) == looks  # remembered, too
    assert {one.name for one in tried} <= {"bf16 contiguous"}


def test_what_cannot_be_compiled_runs_without(
    small: Recipe, memory: Path, measured: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_cuda(monkeypatch, UserError("torch.compile: no C++ compiler; use --compile off"))
    found = settled(small, device=torch.device("cuda"), steps=10**6)
    assert not found.compiles
    assert "not compiled: torch.compile: no C++ compiler" in found.lines[0]


def test_the_rules_of_compiling() -> None:
    assert not may_pay(0.1, 1000)
    assert may_pay(0.1, 10_000)
    assert not pays(Compiling(start=10.0, step=0.2, plain=0.1), 10**9)


def test_a_run_keeps_what_was_settled_and_goes_on_with_it(
    small: Recipe,
    finished: Path,
    tmp_path: Path,
    memory: Path,
    measured: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher = str(next((finished.parent / "teachers").iterdir()))
    recipe = small.changed({**AUTO, "teacher_weights": teacher, "epochs": 1})
    monkeypatch.setattr(hardware, "is_too_short", lambda *_: False)
    runs.run(recipe, tmp_path / "run")
    kept = Recipe.from_yaml(tmp_path / "run" / "recipe.yaml")
    assert (kept.precision, kept.memory_format, kept.compile) == ("bf16", "contiguous", "off")
    assert claim(recipe, tmp_path / "run", True) == kept
    again = settle(kept, tiny.distiller(), tiny.Batch(*tiny.images(8)), CPU, steps=1)
    assert again.arithmetic.name == "bf16 contiguous"
    assert len(measured) == 1


def test_a_teacher_is_found_again_when_its_student_is_resumed_with_settled_settings(small: Recipe) -> None:
    from limbeck.assembly.build import build_data
    from limbeck.assembly.teacher import _key, teacher_recipe

    data = build_data(small)
    keys = {
        _key(teacher_recipe(small.changed(changes)), data, start="")
        for changes in (AUTO, {"precision": "bf16"}, {"memory_format": "channels_last"}, {"compile": "off"})
    }
    assert len(keys) == 1


def test_on_and_off_are_words_in_yaml_too(small: Recipe) -> None:
    for word in ("on", "off", "auto"):
        recipe = small.changed({"compile": word})
        assert Recipe.from_yaml(recipe.to_yaml()).compile == word
        bare = recipe.to_yaml().replace(f"compile: '{word}'", f"compile: {word}")
        assert Recipe.from_yaml(bare).compile == word
    with pytest.raises(UserError, match="compile"):
        small.changed({"compile": "yes"})
