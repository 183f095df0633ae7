"""The page of a detector: its images with boxes, its curves; what is damaged or hostile is left out or escaped."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from limbeck.detection.charts import MOST_ROWS, precision_charts
from limbeck.detection.drawn import drawn_images
from limbeck.report import write_report
from report.planted import EVIL, check_page, detected, make_detected, make_run, picture, read


def test_the_page_has_images_curves_and_bars(tmp_path: Path):
    text, page = read(write_report(make_detected(tmp_path / "run")))
    check_page(text, page)
    ids = {attributes.get("id") for attributes in page.all("figure")}
    assert ids >= {"precision-recall", "precision-figures", "precision-classes"}
    assert len(page.all("image")) == 8  # once each, though student and teacher are shown on it
    assert [attributes["href"] for attributes in page.all("use")] == [
        *(f"#boxes-{i}" for i in range(1, 7)),
        "#boxes-more-1",
        "#boxes-more-2",
    ]
    assert "The teacher finds more There: koala" in page.words
    assert "the F1 is greatest (student 0.25, teacher 0.30)" in page.words
    assert "Student: koala, 91%, right; koala, 40%, wrong. There: koala." in page.words
    assert "a class with a name that is far too long, a crowd" in page.words


def test_the_boxes_are_where_they_were_found(tmp_path: Path):
    _, page = read(write_report(make_detected(tmp_path / "run")))
    drawn = [
        (attributes["class"], *(float(str(attributes[name])) for name in ("x", "y", "width", "height")))
        for attributes in page.all("rect")
        if attributes["class"] != "under"
    ]
    assert drawn[:3] == [
        ("there", 4.0, 4.0, 26.0, 36.0),
        ("right", 5.0, 3.0, 26.5, 36.0),
        ("wrong", 20.0, 20.0, 28.0, 27.0),  # cut off at the edge of the image
    ]


def test_without_a_teacher(tmp_path: Path):
    text, page = read(write_report(make_detected(tmp_path / "run", teacher=False, method="alone")))
    check_page(text, page)
    assert page.all("use") == []
    assert "Not all are found" in page.words
    assert "The weakest first." in page.words


def test_a_run_of_classes_has_none_of_it(tmp_path: Path):
    _, page = read(write_report(make_run(tmp_path / "run")))
    assert "Images with boxes" not in page.words
    assert "What is found" not in page.words


def test_a_run_of_a_task_that_is_not_known_here_has_a_page(tmp_path: Path):
    text, page = read(write_report(make_detected(tmp_path / "run", task="tracking")))
    check_page(text, page)
    assert "What is found" not in page.words


def test_many_classes_are_cut_and_listed():
    chart = {chart.id: chart for chart in precision_charts(detected(classes=50))}["precision-classes"]
    assert len([label for label in chart.wide.labels if label.anchor == "end"]) == MOST_ROWS
    assert f"the first {MOST_ROWS} of 49" in chart.note
    assert chart.table is not None
    assert len(chart.table.rows) == 49  # that which does not occur has no value


def test_the_teachers_lead_comes_first():
    boxes = detected(classes=5)
    boxes["models"]["teacher"]["classes"][4] = 0.9
    chart = {chart.id: chart for chart in precision_charts(boxes)}["precision-classes"]
    assert chart.table is not None
    assert chart.table.rows[0] == ("bullet train", "24.0%", "90.0%")


def broken() -> list[Any]:
    """Each with one thing wrong."""
    found: list[Any] = []
    for path, value in (
        (("images", 0, "jpeg"), "x" * 40),
        (("images", 0, "jpeg"), picture(0)),  # a PNG
        (("images", 0, "jpeg"), 3),
        (("images", 0, "width"), 10**9),
        (("images", 0, "height"), "tall"),
    ):
        boxes: Any = copy.deepcopy(detected())
        boxes[path[0]][path[1]][path[2]] = value
        found.append(boxes)
    return found


@pytest.mark.parametrize("boxes", broken(), ids=["no base64", "png", "number", "huge", "word"])
def test_a_damaged_image_is_left_out(boxes: Any):
    assert len(drawn_images(boxes)) == 7


@pytest.mark.parametrize("box", [[1, 2, 3], [9, 9, 2, 2], ["a", 0, 1, 1], [100, 100, 120, 120], None])
def test_a_damaged_box_is_left_out(box: Any):
    boxes = detected()
    boxes["images"][0]["student"][0]["box"] = box
    first = drawn_images(boxes)[0].panels[0]
    assert [name for name, _, _ in first.named] == ["koala"]
    assert len(first.boxes) == 2


@pytest.mark.parametrize("boxes", [{}, {"models": 3}, {"models": {"student": []}}, {"images": [{}]}, {"classes": [1]}])
def test_a_damaged_file_still_gives_a_page(tmp_path: Path, boxes: Any):
    run = make_run(tmp_path / "run")
    (run / "boxes.json").write_text(json.dumps(boxes), encoding="utf-8")
    text, page = read(write_report(run))
    check_page(text, page)


def test_names_are_escaped(tmp_path: Path):
    run = make_detected(tmp_path / "run")
    boxes = detected()
    boxes["classes"][0] = EVIL
    boxes["images"][0]["kind"] = EVIL
    (run / "boxes.json").write_text(json.dumps(boxes), encoding="utf-8")
    text, page = read(write_report(run))
    check_page(text, page)
    assert EVIL not in text
