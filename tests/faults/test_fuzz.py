"""A few inputs for each reader of the fuzzer, and what the long run once found."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

from limbeck.cli.watch import Watched
from limbeck.errors import UserError
from limbeck.recipes import Recipe

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "fuzz.py"
NAMES = ("recipe", "flags", "image", "weights", "cache-shard", "cache-index", "run", "student", "tar", "idx")


@pytest.fixture(scope="module")
def fuzzer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("limbeck_fuzz", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_all_readers_are_tried(fuzzer: ModuleType):
    assert tuple(reader.name for reader in fuzzer.READERS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_input_ends_in_success_or_one_line(fuzzer: ModuleType, name: str):
    reader = next(reader for reader in fuzzer.READERS if reader.name == name)
    inputs = 6 if name == "flags" else 40
    found = fuzzer.fuzz(reader, seed=1_000_000, inputs=inputs)
    assert found.failures == []
    assert found.accepted + found.refused == inputs
    assert found.refused > 0, "nothing that is wrong was tried"


def test_a_traceback_is_a_failure(fuzzer: ModuleType):
    def broken(_: object) -> None:
        raise KeyError("bug")

    found = fuzzer.fuzz(fuzzer.Reader("broken", lambda rng, folder: None, broken), seed=3, inputs=1)
    assert len(found.failures) == 1
    assert found.failures[0].startswith("broken 3: KeyError: 'bug' (test_fuzz.py:")


@pytest.mark.parametrize("name", ["seed", "epochs", "batch_size"])
def test_a_number_that_python_does_not_write_is_refused_in_a_line(name: str):
    with pytest.raises(UserError, match=f"recipe: {name}: expected a number, got one of 20000 binary digits"):
        Recipe.from_yaml(f"data: digits\nstudent: small/cnn-2\nmethod: alone\n{name}: 0x" + "f" * 5000)


@pytest.mark.parametrize(
    ("part", "value"),
    [("images", float("inf")), ("layout", {"batches": 0}), ("specs", {"a": {"stored": "load"}}), ("made_by", [[1, 2]])],
)
def test_a_cache_card_that_no_cache_has_is_refused_in_a_line(
    fuzzer: ModuleType, tmp_path: Path, part: str, value: object
):
    card = json.loads(json.dumps(fuzzer.CARD))
    path = tmp_path / "cache.json"
    path.write_text(json.dumps(card), encoding="utf-8")
    fuzzer.read_card(path)
    if part == "layout":
        value = {**card["layout"], "batches": 0}
    if part == "specs":
        value = {"output": {**card["specs"]["output"], "stored": "load"}}
    path.write_text(json.dumps({**card, part: value}), encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read") as raised:
        fuzzer.read_card(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "record",
    [
        {"kind": "step", "step": [1], "loss": 1.0},
        {"kind": "step", "step": 1, "parts": None},
        {"kind": "epoch", "step": 1, "val": {"top1": "high"}},
        {"kind": "start", "images": float("inf")},
        {"kind": "probe", "step": 1, "terms": 3},
    ],
)
def test_watch_passes_over_a_record_that_no_run_writes(tmp_path: Path, record: dict[str, object]):
    good = {"kind": "step", "step": 20, "epoch": 1, "loss": 1.5}
    lines = [json.dumps(record), json.dumps(good)]
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    watched = Watched(tmp_path)
    watched.look()
    assert watched.latest.step == 20
    watched.view(Console())
