"""A detector on two processes, started by ``torchrun`` as a user starts it: the run of one process, and its boxes."""

import json
from pathlib import Path
from typing import Any

import pytest

import test_torchrun
from detection import boxes
from limbeck.recipes.recipe import Recipe
from limbeck.runs.run import run
from limbeck.storage.files import load_weights

TRAIN, VAL = 17, 5  # of batches of eight images one is left, which one of two processes does not get


def distilled(folder: Path, *more: str, processes: int) -> Path:
    flags = "distill --task detection --method projector+kd --logit-weight 1 --student fcos-32/cifar/resnet8 --size 64"
    flags += " --teacher fcos-32/cifar/resnet8 --epochs 3 --batch-size 8 --lr 0.01 --clip 10"
    flags += " --sync-batch-norm --augmentation none --precision float32 --memory-format contiguous --device cpu"
    with test_torchrun.launched(folder, *more, flags=flags.split(), count=processes) as process:
        done = test_torchrun.ended(process, folder)
    assert done.code == 0, done.said
    return folder


def read(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name).read_text(encoding="utf-8"))


@pytest.mark.timeout(600)
@pytest.mark.processes
@pytest.mark.long
def test_two_processes_end_as_one(tmp_path: Path, alone: Recipe) -> None:
    data = tmp_path / "data"
    data.mkdir()
    boxes.write_coco(data, train=TRAIN, val=VAL)
    teacher = tmp_path / "teacher"
    run(alone.changed({"data": str(data), "epochs": 8}), teacher)
    more = ("--data", str(data), "--teacher-weights", str(teacher))
    one, two = (distilled(tmp_path / f"run{count}", *more, processes=count) for count in (1, 2))
    assert read(two, "summary.json")["machine"]["processes"] == 2
    found, expected = (load_weights(folder / "student.safetensors") for folder in (two, one))
    assert found.keys() == expected.keys()
    for key, value in expected.items():  # to the rounding of float32, which nine steps have magnified
        assert found[key].double().sub(value).abs().max() < 1e-3 * value.double().abs().max().clamp_min(1), key
    summaries = [read(folder, "summary.json") for folder in (two, one)]
    assert summaries[0]["teacher"] == pytest.approx(summaries[1]["teacher"], abs=1e-6)
    assert summaries[0]["teacher"]["ap50"] > 0.1
    drawn = [read(folder, "boxes.json") for folder in (two, one)]
    assert drawn[0]["models"]["teacher"]["figures"] == pytest.approx(drawn[1]["models"]["teacher"]["figures"], abs=1e-6)
    assert drawn[0]["models"]["student"]["figures"] == pytest.approx(summaries[0]["last"], abs=1e-9)
    truth = [{image["index"]: image["truth"] for image in record["images"]} for record in drawn]
    assert truth[0]
    assert all(truth[1][index] == boxes for index, boxes in truth[0].items() if index in truth[1])
    assert truth[0].keys() <= set(range(VAL))
