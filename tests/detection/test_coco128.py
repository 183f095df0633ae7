"""Real photographs at 416 pixels, from training to the exported file: coco128, where it is unpacked.

A detector learns eight images by heart, teaches another one on all of coco128, and the student is scored, shown and
handed on.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck import cli
from limbeck.assembly.build import load_student

COCO128 = Path.home() / ".cache" / "limbeck" / "coco128"
MODEL = "fcos-32/timm/mobilenetv3_small_050"
LEARNED = 8
SETTINGS = ["--task", "detection", "--size", "416", "--optimizer", "adamw", "--clip", "10", "--batch-size", "4"]

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        not (COCO128 / "annotations").is_dir(), reason=f"{COCO128} is not there: coco128.tar has to be unpacked"
    ),
]


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight training images with one to four boxes, none of them small."""
    folder = tmp_path_factory.mktemp("eight")
    content: dict[str, list[dict[str, Any]]] = json.loads(
        (COCO128 / "annotations" / "instances_train2017.json").read_text(encoding="utf-8")
    )
    boxes: dict[int, list[dict[str, Any]]] = {}
    for box in content["annotations"]:
        boxes.setdefault(box["image_id"], []).append(box)

    def is_simple(image: dict[str, Any]) -> bool:
        own = boxes.get(image["id"], [])
        return 1 <= len(own) <= 4 and all(not b["iscrowd"] and b["bbox"][2] * b["bbox"][3] > 32**2 for b in own)

    content["images"] = [image for image in content["images"] if is_simple(image)][:LEARNED]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [box for box in content["annotations"] if box["image_id"] in kept]
    for image in content["images"]:
        shutil.copy(COCO128 / "train2017" / image["file_name"], folder)
    (folder / "boxes.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def teacher(eight: Path) -> Path:
    """The folder of a detector that has learned eight images, from random weights."""
    source, out = f"coco:{eight / 'boxes.json'}", eight / "teacher"
    words = ["train", "--model", MODEL, "--data", source, "--val", source, "--augmentation", "none", "--lr", "3e-3"]
    assert cli.main([*words, *SETTINGS, "--epochs", "80", "--warmup-epochs", "2", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def student(teacher: Path, eight: Path) -> Path:
    """The folder of a student that the detector taught on all of coco128, scored on what the detector knows."""
    source, out = f"coco:{COCO128 / 'annotations' / 'instances_train2017.json'}", eight / "student"
    words = ["distill", "--student", MODEL, "--teacher", MODEL, "--teacher-weights", str(teacher), "--data", source]
    words += ["--val", f"coco:{eight / 'boxes.json'}", "--epochs", "1", "--lr", "1e-3"]
    assert cli.main([*words, *SETTINGS, "--out", str(out)]) == 0
    return out


def test_a_detector_learns_eight_photographs_by_heart(teacher: Path):
    """By chance, one of 80 classes in a box of any size and place, AP50 would be near zero."""
    summary = json.loads((teacher / "summary.json").read_text(encoding="utf-8"))
    assert summary["last"]["ap50"] > 0.7
    assert summary["last"]["ap"] > 0.4
    boxes = json.loads((teacher / "boxes.json").read_text(encoding="utf-8"))
    assert len(boxes["classes"]) == 80
    assert sum(value is not None for value in boxes["models"]["student"]["classes"]) < 20
    kinds = [image["kind"] for image in boxes["images"]]
    assert kinds.count("both") >= 2


def test_the_student_is_taught_scored_and_shown(student: Path, capsys: pytest.CaptureFixture[str]):
    records = [json.loads(line) for line in (student / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    parts = [record["parts"] for record in records if record["kind"] == "step"]
    assert {f"feature-s{2**k}" for k in range(3, 8)} <= set(parts[0])
    assert all(np.isfinite(list(one.values())).all() for one in parts)
    assert cli.main(["evaluate", str(student)]) == 0
    assert "ap50: " in capsys.readouterr().out
    assert cli.main(["report", str(student)]) == 0
    page = (student / "report.html").read_text(encoding="utf-8")
    assert 'id="precision-recall"' in page
    assert page.count("data:image/jpeg;base64,") >= 3
    assert len(page) < 4_000_000


@pytest.mark.parametrize("which", ["teacher", "student"])
def test_the_exported_file_gives_the_same_boxes_on_photographs(which: str, request: pytest.FixtureRequest):
    """By ONNX Runtime, without Limbeck: on images of the validation set, to 1e-4 of the frame and of the score."""
    onnxruntime = pytest.importorskip("onnxruntime")
    folder: Path = request.getfixturevalue(which)
    file = folder / "student.onnx"
    assert cli.main(["export", str(folder), "--format", "onnx", "--out", str(file)]) == 0
    card = json.loads((folder / "student.json").read_text(encoding="utf-8"))
    mean, std = (torch.tensor(card["input"][name])[:, None, None] for name in ("mean", "std"))
    pictures = sorted((COCO128 / "val2017").glob("*.jpg"))[:4]
    pixels = [np.asarray(Image.open(path).convert("RGB").resize((416, 416))) for path in pictures]
    images = (torch.stack([torch.tensor(one).permute(2, 0, 1) / 255 for one in pixels]) - mean) / std
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    boxes, scores = (torch.from_numpy(value) for value in session.run(None, {"images": images.numpy()}))
    model: Any = load_student(folder).module.eval()
    with torch.no_grad():
        wanted, sure = model.decode(model(images), (416, 416))
    torch.testing.assert_close(boxes, wanted, rtol=1e-4, atol=416 * 1e-4)
    torch.testing.assert_close(scores, sure, rtol=0, atol=1e-4)
