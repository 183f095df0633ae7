"""A run's student scored on other images: all of them, classes by name, in the size of the run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limbeck.cli import main
from limbeck.errors import UserError
from limbeck.recipes.recipe import Recipe
from limbeck.runs import run as runs
from limbeck.runs.inspection import evaluate

COLORS = {"blue": (30, 30, 220), "green": (30, 220, 30), "red": (220, 30, 30)}


def write(folder: Path, classes: dict[str, tuple[int, int, int]], count: int, *, side: int = 12) -> Path:
    random = np.random.default_rng(0)
    for name, color in classes.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            noise = random.integers(-25, 25, (side, side, 3))
            Image.fromarray((np.array(color) + noise).clip(0, 255).astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    write(root / "photos" / "train", COLORS, 16)
    write(root / "photos" / "val", COLORS, 5)
    recipe = Recipe(
        data=str(root / "photos"), student="small/cnn-4", method="alone", epochs=8, batch_size=12, lr=0.1, probe="off",
        augmentation="none", workers=1, precision="float32", memory_format="contiguous", compile="off", device="cpu",
    )  # fmt: skip
    runs.run(recipe, root / "run")
    assert evaluate(root / "run")["top1"] == 1.0
    return root / "run"


def scored(trained: Path, data: Path, **options: str) -> tuple[float, str]:
    said: list[str] = []
    return evaluate(trained, data=str(data), say=said.append, **options)["top1"], " ".join(said)


def test_all_images_of_a_folder_are_scored_and_counted(trained: Path, tmp_path: Path) -> None:
    top1, said = scored(trained, write(tmp_path / "test", COLORS, 20))
    assert (top1, said.split(" of")[0]) == (1.0, "images: 60")


def test_labels_without_their_images_are_refused(trained: Path) -> None:
    with pytest.raises(UserError, match=r"^--labels x\.csv: needs --data"):
        evaluate(trained, label_file="x.csv")


def test_images_are_read_in_the_size_of_the_run(trained: Path, tmp_path: Path) -> None:
    kept = json.loads((trained / "data.json").read_text(encoding="utf-8"))
    assert kept["size"] == 12
    assert scored(trained, write(tmp_path / "large", COLORS, 3, side=40))[0] == 1.0


def test_the_validation_part_of_a_set_is_scored_and_said(trained: Path, tmp_path: Path) -> None:
    write(tmp_path / "Train", COLORS, 4)
    write(tmp_path / "Test", COLORS, 3)
    top1, said = scored(trained, tmp_path)
    assert top1 == 1.0
    assert "images: 9 of" in said
    assert "scored on its part Test/" in said
    shutil.rmtree(tmp_path / "Train")
    assert "images: 9 of" in scored(trained, tmp_path)[1]  # a part alone


def test_classes_are_matched_by_name(trained: Path, tmp_path: Path) -> None:
    two = {name: COLORS[name] for name in ("red", "green")}  # other numbers than in training
    top1, said = scored(trained, write(tmp_path / "two", two, 4))
    assert top1 == 1.0
    assert "no images of 1 of the 3 classes: blue" in said
    assert scored(trained, write(tmp_path / "one", {"red": COLORS["red"]}, 4))[0] == 1.0
    turned = write(tmp_path / "turned", {**two, "zebra": COLORS["blue"]}, 4)
    with pytest.raises(UserError, match=r'turned" has classes .* does not know: zebra; its 3 classes are blue, green'):
        evaluate(trained, data=str(turned))
    with pytest.raises(UserError, match="classes that the model does not know: 0, 1, 2, "):
        evaluate(trained, data="digits")


def test_a_file_of_labels(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "sorted", COLORS, 3)
    (tmp_path / "flat").mkdir()
    lines: list[str] = []
    for path in sorted((tmp_path / "sorted").rglob("*.png")):
        path.rename(tmp_path / "flat" / f"{path.parent.name[0]}{path.name}")
        lines.append(f"{path.parent.name[0]}{path.name},{path.parent.name}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    words = ["evaluate", str(trained), "--data", str(tmp_path / "flat"), "--labels", str(tmp_path / "labels.csv")]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "images: 9 of flat" in out
    assert "top1: 100.00%" in out


def test_changed_images_of_the_run_itself_are_said(trained: Path) -> None:
    extra = trained.parent / "photos" / "val" / "red" / "extra.png"
    shutil.copy(extra.with_name("0.png"), extra)
    said: list[str] = []
    evaluate(trained, say=said.append)
    extra.unlink()
    assert said[0].startswith("note: the images have changed since")
    assert "validation images: 15 -> 16" in said[0]
    assert said[1] == "images: 16 of photos"


def test_features_are_judged_without_the_classifier_on_classes_that_the_student_does_not_know(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {"dawn": COLORS["red"], "moss": COLORS["green"], "sea": COLORS["blue"]}
    write(tmp_path / "other" / "train", other, 12)
    write(tmp_path / "other" / "val", other, 4)
    assert main(["evaluate", str(trained), "--probe", "knn", "linear", "--data", str(tmp_path / "other")]) == 0
    said = capsys.readouterr().out
    assert "36 to learn from, 12 to score on" in said
    assert "knn top-1: 100.00%" in said
    assert "linear top-1: 100.00%" in said


def test_a_run_without_labels_is_judged_by_the_labels_of_other_images(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    for path in (trained.parent / "photos" / "train").rglob("*.png"):
        (photos / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, photos / path.parent.name / path.name)
    words = "distill --no-labels --student small/cnn-2 --teacher small/cnn-4 --epochs 2 --batch-size 12 --probe off"
    words += f" --device cpu --data {photos} --teacher-weights {trained} --out {tmp_path / 'run'}"
    assert main(words.split()) == 0
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    assert "--probe knn --data LABELLED judges features" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "run"), "--probe", "knn", "--data", str(trained.parent / "photos")]) == 0
    share = float(capsys.readouterr().out.split("knn top-1: ")[1].split("%")[0])
    assert share > 60  # three colors; chance is 33


@pytest.mark.parametrize(
    ("card", "words", "message"),
    [
        ({"task": "detection"}, [], "expected one of classification"),
        ({}, ["--data", "FLAT"], "class folders"),
        ({}, ["--labels", "x.csv"], "--labels x.csv: needs --data"),
    ],
)
def test_what_cannot_be_judged_is_one_line(
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    card: dict[str, str],
    words: list[str],
    message: str,
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    kept = json.loads((tmp_path / "run" / "student.json").read_text())
    (tmp_path / "run" / "student.json").write_text(json.dumps({**kept, **card}))
    flat = write(tmp_path / "made", {"red": COLORS["red"]}, 3) / "red"
    words = [str(flat) if word == "FLAT" else word for word in words]
    assert main(["evaluate", str(tmp_path / "run"), "--probe", "linear", *words]) == 2
    assert message in capsys.readouterr().err
