"""Sharded trainings that are stopped and go on, in shares or not; that meet bad numbers; that are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sharding_faults_worker as worker
import sharding_worker
import spawned
import tiny
from limbeck.distributed import sharding
from limbeck.storage.checkpoint import Checkpoints
from limbeck.storage.files import load_weights
from limbeck.training import meter

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, Any]:
    """What this process finds alone; also the first epoch of a training that the others go on with in shares."""
    was, meter.LOG_EVERY = meter.LOG_EVERY, 2
    try:
        kept = Checkpoints(folder / "one-shares" / "checkpoint")
        sharding_worker.training(folder / "one-shares", **worker.CASE, shard=False, epochs=1, checkpoints=kept)
        return {
            "unbroken": sharding_worker.training(
                folder / "one", **worker.CASE, shard=False, checkpoints=Checkpoints(folder / "one")
            ),
            "left out": worker.left_out(folder / "left out", shard=False),
        }
    finally:
        meter.LOG_EVERY = was


@pytest.fixture(scope="module")
def two(folder: Path, one: dict[str, Any]) -> list[dict[str, Any]]:
    """What each of two processes found; the one in front of them has left a checkpoint."""
    assert one
    (folder / "2").mkdir()
    return spawned.found_by(worker.work, 2, folder / "2")


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-8, atol=1e-8), name


@pytest.mark.parametrize("how", ["killed", "stopped by a signal"])
def test_what_goes_on_ends_with_the_same_bytes(two: list[dict[str, Any]], how: str) -> None:
    """In mid-epoch; the signal came to one process only."""
    for found in two:
        assert found[how]["states"][-1] in ("step-000000002", "step-000000004")
        assert tiny.same_bytes(found[how]["again"]["state"], found["unbroken"]["state"])
        assert found[how]["again"]["counters"] == found["unbroken"]["counters"]


def test_shares_go_on_where_there_were_none_and_back(
    one: dict[str, Any], two: list[dict[str, Any]], folder: Path
) -> None:
    """DDP to shares and back, one process to shares and back."""
    expected = one["unbroken"]
    kept = Checkpoints(folder / "2" / "shares-one" / "checkpoint")
    back = sharding_worker.training(folder / "2" / "shares-one", **worker.CASE, shard=False, checkpoints=kept)
    assert_close(back["state"], expected["state"])
    for whole in two:
        for found in (whole["unbroken"], whole["from one"], *whole["in turn"].values()):
            assert_close(found["state"], expected["state"])
            assert found["counters"] == expected["counters"]


def test_a_checkpoint_of_shares_is_that_of_one_process(one: dict[str, Any], two: list[dict[str, Any]], folder: Path):
    """The same files, names, shapes and types, and the same numbers, to the optimizer's."""
    assert one
    assert two
    newest = [Checkpoints(path).states()[-1] for path in (folder / "2" / "unbroken", folder / "one")]
    assert newest[0].name == newest[1].name
    assert sorted(path.name for path in newest[0].iterdir()) == sorted(path.name for path in newest[1].iterdir())
    for name in ("student", "terms", "average"):
        assert_close(*(load_weights(path / f"{name}.safetensors") for path in newest))
    shares, alone = (torch.load(path / "trainer.pt", weights_only=True)["optimizer"] for path in newest)
    assert shares["param_groups"] == alone["param_groups"]
    assert shares["state"].keys() == alone["state"].keys()
    assert len(alone["state"]) > 8
    for number, values in alone["state"].items():
        assert_close(shares["state"][number], values)
        assert all(type(value) is Tensor for value in shares["state"][number].values())


def test_all_processes_see_a_bad_number_in_the_share_of_one(two: list[dict[str, Any]]) -> None:
    for found in two:
        assert found["parts"]["parameter"]["broken"] == (("student.conv1.weight",), ())
        assert found["parts"]["gradient"]["broken"] == ((), ("student.conv1.weight",))
        assert found["parts"]["parameter"]["norm"] == 0
        assert found["parts"]["gradient"]["norm"] != found["parts"]["gradient"]["norm"]  # NaN


def test_steps_that_are_left_out_leave_no_trace(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    for found in two:
        assert_close(found["left out"]["state"], one["left out"]["state"])
        assert found["left out"]["counters"] == one["left out"]["counters"]
        assert found["left out"]["counters"][2] == 2


def test_a_bad_number_stops_all_with_the_same_line(two: list[dict[str, Any]]) -> None:
    lines = {found["stopped"] for found in two}
    assert len(lines) == 1
    line = lines.pop()
    assert "not finite at step 4 (epoch 1, process 1)" in line
    assert "the input is not finite before it" in line


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("optimizer", "give a function that makes it"),
        ("float16", "use bfloat16 or float32"),
        ("accumulate", "accumulate is 2"),
        ("probe", "expected probe=None"),
        ("compile", "leave compile_parts out"),
        ("scalar", "student.scale is a scalar"),
        ("channels_last", "student.conv1.weight is not contiguous"),
    ],
)
def test_what_cannot_be_combined_is_refused(two: list[dict[str, Any]], what: str, said: str) -> None:
    for found in two:
        assert found["refusals"][what].startswith("shard: ")
        assert said in found["refusals"][what]
        assert "\n" not in found["refusals"][what]


def test_a_teacher_that_reads_the_weights_of_a_part_is_refused(two: list[dict[str, Any]]) -> None:
    for found in two:
        for line in found["unfit"]:
            assert line.startswith("shard: Reading cannot be cut up, for it reads the weights of a part")
            assert "\n" not in line


def test_what_shares_a_parameter_stays_together() -> None:
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    model = nn.Sequential(first, second, nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
    assert sharding.units_of(model) == [model[2], model[3][0]]


def test_a_list_of_modules_is_no_part_and_attention_is_not_cut_open() -> None:
    blocks = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(2))
    model = nn.Sequential(nn.ModuleDict({"blocks": blocks, "norm": nn.LayerNorm(2)}), nn.ReLU())
    assert sharding.units_of(model) == list(blocks)


def test_no_process_skips_a_collective(two: list[dict[str, Any]]) -> None:
    """With short and empty shares, bad numbers left out, checkpoints, validation with labels and without, a resume."""
    first, second = (found["recorded"] for found in two)
    kinds = {line.split()[0] for line in first}
    assert {"all_reduce", "all_gather", "broadcast", "barrier", "whole"} < kinds
    assert kinds & {"all_gather_single", "all_gather_into_tensor"}  # of the shares, as torch calls it
    assert kinds & {"reduce_scatter_single", "reduce_scatter_tensor"}
    assert len(first) > 400
    differing = [i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b]
    assert not differing, f"{second[differing[0]]}; the first process: {first[differing[0]]}"
    assert len(second) == len(first)
