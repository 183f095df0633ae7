"""Annotations: three formats say the same of the same boxes, and each kind of fault is told and can be left out."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detection.data import planted
from limbeck.data.problems import Problems
from limbeck.detection.data import DetectionSpec, open_detection
from limbeck.detection.data.coco import read_coco
from limbeck.detection.data.problems import Fault
from limbeck.errors import UserError


def opened(source: str, **fields: Any):
    return open_detection(DetectionSpec(source=source, workers=0, **fields))


def test_coco_boxes_are_read_in_their_place_with_labels_from_zero(tmp_path: Path):
    problems = Problems()
    index = read_coco(planted.write_coco(tmp_path, 6), problems)
    assert (len(problems), len(index), index.classes) == (0, 6, planted.CLASSES)
    for i in range(6):
        assert index.boxes[index.of(i)].tolist() == [list(map(float, planted.corners(i)))]
        assert index.labels[index.of(i)].tolist() == [i % 3]
        assert index.areas[index.of(i)].tolist() == [20.0 * 16.0]
    assert index.sizes.tolist() == [[planted.HEIGHT, planted.WIDTH]] * 6


def test_three_formats_give_the_same_boxes(tmp_path: Path):
    coco = read_coco(planted.write_coco(tmp_path / "coco"), Problems())
    yolo = opened(f"yolo:{planted.write_yolo(tmp_path / 'yolo')}").part("train")
    voc = opened(f"voc:{planted.write_voc(tmp_path / 'voc')}")
    np.testing.assert_allclose(yolo.boxes, coco.boxes, atol=1e-4)
    assert yolo.labels.tolist() == coco.labels.tolist()
    assert (yolo.classes, voc.classes) == (coco.classes, coco.classes)
    both = np.concatenate([voc.part("train").boxes, voc.part("val").boxes])
    np.testing.assert_allclose(both, coco.boxes)
    assert (voc.train_count, voc.val_count) == (4, 2)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (planted.write_yolo, "is read as yolo"),
        (planted.write_voc, "is read as voc"),
        (
            lambda folder: planted.write_coco(folder, name="boxes-train.json").parent,
            "is read as coco: it has boxes-train.json",
        ),
        (planted.write_coco, "is read as coco: a JSON file"),
    ],
    ids=["yolo", "voc", "coco folder", "coco file"],
)
def test_the_format_is_recognized_and_said(tmp_path: Path, write: Callable[[Path], Path], said: str):
    data = opened(str(write(tmp_path / "set")))
    assert said in data.notes[0]


def coco(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], str]:
    """A planted COCO file with one thing changed in it."""

    def write(folder: Path) -> str:
        content = planted.coco_content(6)
        change(content)
        return f"coco:{planted.write_coco(folder, content=content)}"

    return write


def box(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["annotations"][1].update(values)


def image(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["images"][1].update(values)


def again(kind: str, /, **values: Any) -> Callable[[dict[str, Any]], object]:
    """One entry more: the first with other values."""
    return lambda content: content[kind].append({**copy.deepcopy(content[kind][0]), **values})


def without(name: str, key: str) -> Callable[[dict[str, Any]], object]:
    return lambda content: content[name][1].pop(key)


def coco_upside_down(folder: Path) -> str:
    source = coco(image(file_name="im01.jpg"))(folder)
    planted.write_turned(folder / "im01.jpg", 1, 3)
    return source


def yolo(file: str, text: str | bytes) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        path = planted.write_yolo(folder) / file
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return f"yolo:{folder}"

    return write


def voc(image: int, text: str) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        (planted.write_voc(folder) / "Annotations" / f"im{image:02}.xml").write_text(text, encoding="utf-8")
        return f"voc:{folder}"

    return write


def voc_dog_twice(folder: Path) -> str:
    """Two annotations of one image, in a set in which the lost class is there once more."""
    annotations = planted.write_voc(folder) / "Annotations"
    (annotations / "im01.xml").write_text(planted.voc_xml(0), encoding="utf-8")
    (annotations / "im03.xml").write_text(planted.voc_xml(3, name="dog"), encoding="utf-8")
    return f"voc:{folder}"


def voc_set(text: str) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        (planted.write_voc(folder) / "ImageSets/Main/train.txt").write_text(text, encoding="utf-8")
        return f"voc:{folder}"

    return write


def yolo_without_image(folder: Path) -> str:
    (planted.write_yolo(folder) / "images/train/im01.png").unlink()
    return f"yolo:{folder}"


def yolo_broken_image(folder: Path) -> str:
    (planted.write_yolo(folder) / "images/train/im01.png").write_bytes(b"no image")
    return f"yolo:{folder}"


BOX = "<xmin>{}</xmin><ymin>5</ymin><xmax>{}</xmax><ymax>9</ymax>"

# What is written, the kind of fault, what the example says, and what is left of six images and their boxes.
FAULTS: list[tuple[Callable[[Path], str], Fault, str, int, int]] = [
    (coco(box(bbox=[10, 10, -5, 8])), Fault.NEGATIVE, "annotation 101 of im01.png: -5 x 8 at 10, 10 in 60 x 40", 5, 5),
    (coco(box(bbox=[10, 10, 5, 0])), Fault.EMPTY, "5 x 0", 5, 5),
    (coco(box(bbox=[70, 10, 5, 5])), Fault.OUTSIDE, "5 x 5 at 70, 10", 5, 5),
    (coco(box(bbox=[50, 10, 15, 5])), Fault.OVER_EDGE, "15 x 5 at 50, 10", 5, 5),
    (coco(box(bbox=[10, 10, float("nan"), 5])), Fault.NOT_FINITE, "nan x 5", 5, 5),
    (coco(box(bbox=[10, 10, float("inf"), 5])), Fault.NOT_FINITE, "inf x 5", 5, 5),
    (coco(box(bbox=[10, 10, 5])), Fault.NO_BOX, "[10, 10, 5]", 5, 5),
    (coco(box(bbox=[10, 10, "5", 5])), Fault.NO_BOX, "'5'", 5, 5),
    (coco(box(bbox=[10, 10, True, 5])), Fault.NO_BOX, "True", 5, 5),
    (coco(without("annotations", "bbox")), Fault.NO_BOX, "None", 5, 5),
    (coco(box(category_id=7)), Fault.CATEGORY, "annotation 101: category 7", 5, 5),
    (coco(box(image_id=7)), Fault.IMAGE, "annotation 101: image 7", 6, 5),
    (coco(box(iscrowd=2)), Fault.CROWD, "annotation 101: 2", 5, 5),
    (coco(box(image_id="11")), Fault.ENTRY, "annotation 101", 6, 5),
    (coco(without("annotations", "category_id")), Fault.ENTRY, "annotation 101", 5, 5),
    (coco(lambda content: content["annotations"].__setitem__(1, 3)), Fault.ENTRY, "annotation number 1: 3", 6, 5),
    (coco(again("annotations", bbox=[1, 1, 5, 5])), Fault.ID_TWICE, "annotation 100 of image 10", 6, 6),
    (coco(again("annotations", id=999)), Fault.TWICE, "annotation 999 of im00.png", 6, 6),
    (coco(image(file_name="gone.png")), Fault.IMAGE_MISSING, "gone.png", 5, 5),
    (coco(image(file_name="../gone.png")), Fault.IMAGE_ELSEWHERE, "../gone.png", 5, 5),
    (coco(image(file_name=None)), Fault.IMAGE_ENTRY, "None", 5, 5),
    (coco(lambda content: (image(id=[11])(content), content["annotations"].pop(1))), Fault.IMAGE_ENTRY, "[11]", 5, 5),
    (coco(image(height=0)), Fault.IMAGE_SIZE, "im01.png: height 0, width 60", 5, 5),
    (coco(image(width="60")), Fault.IMAGE_SIZE, "width '60'", 5, 5),
    (coco(again("images", file_name="im01.png")), Fault.IMAGE_ID_TWICE, "10: im01.png", 6, 6),
    (coco(again("images", id=77)), Fault.IMAGE_TWICE, "im00.png", 6, 6),
    (coco(image(height=41)), Fault.IMAGE_SIZE, "im01.png: 60 x 41 in the annotations, 60 x 40 in the file", 5, 5),
    (coco_upside_down, Fault.IMAGE_TURNED, "im01.jpg: EXIF orientation 3", 5, 5),
    (coco(again("categories", name="cow")), Fault.CATEGORY_TWICE, '5 "cow"', 6, 6),
    (coco(again("categories", name=None)), Fault.CATEGORY_ENTRY, "None", 6, 6),
    (yolo("labels/train/im01.txt", "1 0.5 0.5 0.2\n"), Fault.FIELDS, "line 1 of im01.txt: 1 0.5 0.5 0.2", 5, 5),
    (yolo("labels/train/im01.txt", "cat 0.5 0.5 0.2 0.2\n"), Fault.FIELDS, "cat 0.5", 5, 5),
    (yolo("labels/train/im01.txt", "1 0.5 0.5 0.2 1.7\n"), Fault.RANGE, "1.7", 5, 5),
    (yolo("labels/train/im01.txt", "1 0.5 0.5 -0.2 0.2\n"), Fault.NEGATIVE, "-0.2", 5, 5),
    (yolo("labels/train/im01.txt", "1 nan 0.5 0.2 0.2\n"), Fault.NOT_FINITE, "line 1 of im01.txt of im01.png", 5, 5),
    (yolo("labels/train/im01.txt", "3 0.5 0.5 0.2 0.2\n"), Fault.CATEGORY, "class 3, of 3", 5, 5),
    (yolo("labels/train/im01.txt", b"\xff"), Fault.FILE, "im01.txt", 5, 5),
    (yolo_without_image, Fault.NO_IMAGE, "im01.txt", 5, 5),
    (yolo_broken_image, Fault.IMAGE_UNREADABLE, "im01.png: not an image", 5, 5),
    (voc(0, "<annotation>"), Fault.FILE, "im00.xml", 3, 3),
    (voc(0, '<!DOCTYPE a [<!ENTITY a "b">]><annotation/>'), Fault.FILE, "declares entities", 3, 3),
    (voc(0, planted.voc_xml(0, box=BOX.format(9, "a"))), Fault.NO_BOX, "object 1 in im00.xml", 3, 3),
    (voc(0, planted.voc_xml(0, box=BOX.format(30, 9))), Fault.NEGATIVE, "-20 x 5", 3, 3),
    (voc_dog_twice, Fault.IMAGE_TWICE, "im01.xml: im00.png", 3, 3),
    (voc(5, planted.voc_xml(5, name="yak")), Fault.CATEGORY, '"yak"', 4, 4),
    (voc_set("im00\nim01\nim02\nim03\nim99\n"), Fault.FILE, "im99.xml, which train.txt lists", 4, 4),
    (voc_set("im00\nim01\nim02\nim03\nim03\n"), Fault.IMAGE_TWICE, "im03 in train.txt", 4, 4),
]  # fmt: skip


@pytest.mark.parametrize(
    ("write", "fault", "example", "images", "boxes"), FAULTS, ids=[f"{i}-{f[1].name}" for i, f in enumerate(FAULTS)]
)
def test_a_fault_is_refused_with_its_kind_and_place_or_left_out(
    tmp_path: Path, write: Callable[[Path], str], fault: Fault, example: str, images: int, boxes: int
):
    source = write(tmp_path)
    val = None if not source.startswith("coco") else f"coco:{planted.write_coco(tmp_path / 'val')}"
    with pytest.raises(UserError) as refused:
        opened(source, val=val)
    first, *lines = str(refused.value).splitlines()
    assert first == f"{source}: 1 faults in the annotations (--on-bad-annotations skip leaves them out)"
    assert len(lines) == 1
    assert lines[0].startswith(f"  {fault.value}: 1 (")
    assert example in lines[0]
    data = opened(source, val=val, on_bad="skip")
    assert (data.train_count, len(data.part("train").boxes)) == (images, boxes)
    assert any(note.startswith(fault.value) for note in data.notes)


def test_at_least_fifteen_kinds_are_planted():
    assert len({fault for _, fault, *_ in FAULTS}) >= 24
    assert {fault for _, fault, *_ in FAULTS} == set(Fault)


def test_many_faults_make_one_report_with_the_most_frequent_first(tmp_path: Path):
    content = planted.coco_content(6)
    for entry in content["annotations"][:5]:
        entry["bbox"] = [1, 1, 0, 4]
    content["annotations"][5]["category_id"] = 8
    with pytest.raises(UserError) as refused:
        opened(f"coco:{planted.write_coco(tmp_path, content=content)}")
    lines = str(refused.value).splitlines()
    assert "6 faults" in lines[0]
    assert lines[1].startswith("  box without area: 5 (annotation 100 of im00.png")
    assert lines[1].endswith("; ...)")
    assert lines[2].startswith("  unknown category: 1")


def test_a_box_that_reaches_one_pixel_over_the_edge_is_cut_off_there(tmp_path: Path):
    content = planted.coco_content(6)
    content["annotations"][0]["bbox"] = [-0.5, 20, 10, 20.6]
    index = read_coco(planted.write_coco(tmp_path, content=content), Problems())
    assert index.boxes[0].tolist() == [0.0, 20.0, 9.5, 40.0]


def test_images_without_boxes_are_kept(tmp_path: Path):
    content = planted.coco_content(6)
    del content["annotations"][2]
    index = read_coco(planted.write_coco(tmp_path, content=content), Problems())
    assert index.counts.tolist() == [1, 1, 0, 1, 1, 1]


def test_crowds_are_marked_and_classes_without_boxes_are_said(tmp_path: Path):
    content = planted.coco_content(6)
    content["annotations"][1]["iscrowd"] = content["annotations"][4]["iscrowd"] = 1
    data = opened(f"coco:{planted.write_coco(tmp_path, content=content)}", val=f"coco:{tmp_path / 'boxes.json'}")
    assert data.part("train").crowd.tolist() == [False, True, False, False, True, False]
    assert any("1 classes have no box to learn from (dog)" in note for note in data.notes)
    assert any("2 boxes around crowds" in note for note in data.notes)


def test_difficult_objects_of_voc_are_not_learned(tmp_path: Path):
    write = voc(1, planted.voc_xml(1, difficult=1))
    assert opened(write(tmp_path)).part("train").crowd.tolist() == [False, True, False, False]


def test_chosen_classes_are_numbered_in_their_order_and_others_are_left_out(tmp_path: Path):
    source = f"coco:{planted.write_coco(tmp_path)}"
    part = opened(source, val=source, classes=("emu", "cat")).part("train")
    assert part.classes == ("emu", "cat")
    assert part.labels.tolist() == [1, 0, 1, 0]
    assert part.names == ("im00.png", "im02.png", "im03.png", "im05.png")


def test_a_share_is_held_back_by_names_and_a_smaller_choice_is_a_part_of_a_larger_one(tmp_path: Path):
    source = f"coco:{planted.write_coco(tmp_path, 20)}"
    whole, again = opened(source), opened(source)
    assert (whole.train_count, whole.val_count) == (18, 2)
    assert whole.fingerprint == again.fingerprint
    assert not set(whole.part("train").names) & set(whole.part("val").names)
    few = set(opened(source, train_limit=5).part("train").names)
    assert few < set(opened(source, train_limit=9).part("train").names)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "is no COCO file"),
        ("{", "is not JSON"),
        ('{"images": [], "annotations": {}, "categories": []}', "is no COCO file"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_a_file_that_is_no_coco_file_is_refused(tmp_path: Path, content: str, said: str):
    file = tmp_path / "a.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=said):
        opened(f"coco:{file}")


def test_sources_that_are_not_there_are_said_in_one_line(tmp_path: Path):
    for source, said in (
        ("coko:a.json", 'unknown format "coko".*did you mean "coco"'),
        (str(tmp_path / "nowhere"), "does not exist"),
        (f"coco:{tmp_path / 'nowhere.json'}", "do not exist"),
        (f"yolo:{tmp_path}", "is empty"),
        (f"voc:{tmp_path}", "is empty"),
    ):
        with pytest.raises(UserError, match=said):
            opened(source)
    (tmp_path / "a.txt").write_text("", encoding="utf-8")
    for source, said in (
        (str(tmp_path), "in no format that detection knows"),
        (f"yolo:{tmp_path}", "is no YOLO folder"),
        (f"voc:{tmp_path}", "is no VOC folder"),
    ):
        with pytest.raises(UserError, match=said):
            opened(source)


def test_images_that_are_nowhere_are_said_once(tmp_path: Path):
    file = tmp_path / "a" / "boxes.json"
    file.parent.mkdir()
    file.write_text(json.dumps(planted.coco_content(6)), encoding="utf-8")
    with pytest.raises(UserError, match=r'"im00\.png", the first one, is none of "/'):
        opened(f"coco:{file}")


def test_a_validation_file_has_to_know_the_classes_of_training(tmp_path: Path):
    train = planted.write_coco(tmp_path / "train")
    content = planted.coco_content(6)
    content["categories"][2]["name"] = "yak"
    val = planted.write_coco(tmp_path / "val", content=content)
    with pytest.raises(UserError, match=r'unknown category: 2 \("yak" in im02\.png, not in training;'):
        opened(f"coco:{train}", val=f"coco:{val}")


def test_an_unknown_class_gets_the_nearest_name(tmp_path: Path):
    with pytest.raises(UserError, match=r'no class "dag".*did you mean "dog"'):
        opened(f"coco:{planted.write_coco(tmp_path)}", classes=("dag",))


ODD = (
    None,
    True,
    -1,
    0,
    2**70,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x" * 5000,
    "../a",
    "\ud800",
    [],
    [[]],
    {},
    {"id": 1},
    [1] * 9,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value in a tree of lists and objects."""
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([path] if path else []), *(found for key, inner in below for found in places(inner, (*path, key)))]


def test_odd_values_anywhere_are_faults_and_never_a_crash(tmp_path: Path):
    """One to three values of a COCO file replaced by odd ones, 120 times."""
    random = np.random.default_rng(0)
    planted.write_coco(tmp_path, 6)
    refused = 0
    for _ in range(120):
        content = planted.coco_content(6)
        for _ in range(int(random.integers(1, 4))):
            way = places(content)[int(random.integers(len(places(content))))]
            holder: Any = content
            for key in way[:-1]:
                holder = holder[key]
            holder[way[-1]] = ODD[int(random.integers(len(ODD)))]
        file = tmp_path / "odd.json"
        file.write_text(json.dumps(content), encoding="utf-8")
        for choice in ("refuse", "skip"):
            try:
                data = opened(f"coco:{file}", on_bad=choice)
                assert np.isfinite(data.part("train").boxes).all()
            except UserError:
                refused += choice == "refuse"
    assert refused > 60
