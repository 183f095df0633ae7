"""Kinds of data sets with boxes that people bring: each is read right, and said, or refused in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detection.data import planted
from limbeck.detection.data import DetectionData, DetectionSpec, open_detection, open_for_scoring
from limbeck.errors import UserError

BOXES = [list(map(float, planted.corners(i))) for i in range(6)]
LABELS = [i % 3 for i in range(6)]


def opened(source: object, **fields: Any) -> DetectionData:
    return open_detection(DetectionSpec(source=str(source), workers=0, **fields))


def assert_planted(data: DetectionData, which: Any = "train") -> None:
    """All six images with the boxes that were planted, under the class numbers of training."""
    part = data.part(which)
    np.testing.assert_allclose(part.boxes, BOXES, atol=1e-4)
    assert [part.classes[label] for label in part.labels] == [planted.CLASSES[label] for label in LABELS]


def said(data: DetectionData, words: str) -> bool:
    return any(words in note for note in data.notes)


# --- pixels that EXIF turns ------------------------------------------------------------------------------


def turned_coco(folder: Path, orientation: int, frame: str, *, witness: bool) -> str:
    """Two images of an orientation, and one of a quarter turn that shows which frame the file is in."""
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = planted.coco_content(2)
    orientations = (orientation, 8 if witness else orientation)
    for i, (image, entry) in enumerate(zip(content["images"], content["annotations"], strict=True)):
        image["file_name"] = f"im{i:02}.jpg"
        stored = planted.write_turned(folder / f"im{i:02}.jpg", i, orientations[i])
        if frame == "stored":
            left, top, right, bottom = stored
            entry["bbox"] = [left, top, right - left, bottom - top]
            with Image.open(folder / f"im{i:02}.jpg") as file:
                image["width"], image["height"] = file.size
    (folder / "boxes.json").write_text(json.dumps(content), encoding="utf-8")
    return f"coco:{folder}/boxes.json"


@pytest.mark.parametrize("frame", ["stored", "shown"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_lie_on_their_objects_whichever_frame_the_annotations_are_in(
    tmp_path: Path, orientation: int, frame: str
):
    source = turned_coco(tmp_path, orientation, frame, witness=True)
    data = opened(source, val=source, size=64, augmentation="none")
    batch = data.sample("train", 2)
    for image, box in zip(batch.images, batch.boxes[:, 0], strict=True):
        rows, columns = (image.mean(0) > 0.7).nonzero(as_tuple=True)
        seen = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        assert (seen - box).abs().max() < 2
    assert said(data, "their boxes are turned with them") == (frame == "stored")


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_an_orientation_that_nothing_explains_is_refused(tmp_path: Path, orientation: int):
    source = turned_coco(tmp_path, orientation, "shown", witness=False)
    with pytest.raises(UserError, match=r"EXIF orientation leaves open which way its boxes lie .*: 2 \(im00.jpg: EXIF"):
        opened(source)


def test_voc_boxes_of_the_stored_pixels_are_turned(tmp_path: Path):
    folder = planted.write_voc(tmp_path)
    for i in range(6):
        (folder / "JPEGImages" / f"im{i:02}.png").unlink()
        left, top, right, bottom = planted.write_turned(folder / "JPEGImages" / f"im{i:02}.jpg", i, 6)
        box = f"<xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
        size = f"<annotation><size><width>{planted.HEIGHT}</width><height>{planted.WIDTH}</height></size>"
        text = planted.voc_xml(i, box=box).replace("<annotation>", size)
        (folder / "Annotations" / f"im{i:02}.xml").write_text(text, encoding="utf-8")
    data = opened(f"voc:{folder}")
    np.testing.assert_allclose(np.concatenate([data.part("train").boxes, data.part("val").boxes]), BOXES)


# --- class names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [planted.write_yolo, planted.write_coco], ids=["yolo", "coco"])
def test_a_second_yolo_folder_has_class_numbers_of_its_own(tmp_path: Path, source: Callable[[Path], Path]):
    kind = source.__name__.rpartition("_")[2]
    first = f"{kind}:{source(tmp_path / 'first')}"
    other = planted.write_yolo(tmp_path / "other")
    (other / "data.yaml").write_text("names: [emu, cat, dog]\n", encoding="utf-8")
    for file in other.rglob("*.txt"):
        number, _, rest = file.read_text().partition(" ")
        file.write_text(f"{(int(number) + 1) % 3} {rest}")
    assert_planted(opened(first, val=f"yolo:{other}"), "val")


def test_a_second_folder_without_names_has_the_numbers_of_training(tmp_path: Path):
    other = planted.write_yolo(tmp_path / "other")
    (other / "data.yaml").unlink()
    assert_planted(opened(f"yolo:{planted.write_yolo(tmp_path / 'first')}", val=f"yolo:{other}"), "val")


def test_a_class_that_validation_lacks_is_said(tmp_path: Path):
    content = planted.coco_content(6)
    content["categories"].pop()
    content["annotations"] = [entry for entry in content["annotations"] if entry["category_id"] != 15]
    val = planted.write_coco(tmp_path / "val", content=content)
    data = opened(planted.write_coco(tmp_path / "train"), val=f"coco:{val}")
    assert len(data.part("val").boxes) == 4
    assert said(data, "1 classes of training are not in the validation annotations (emu)")


@pytest.mark.parametrize(("root", "at"), [(0, 0), (99, -1)])
def test_a_root_category_without_boxes_costs_none(tmp_path: Path, root: int, at: int):
    content = planted.coco_content(6)
    content["categories"].insert(at, {"id": root, "name": "cat", "supercategory": "none"})
    data = opened(planted.write_coco(tmp_path, content=content), val=f"coco:{tmp_path}/boxes.json")
    assert_planted(data)
    assert said(data, f'{root} "cat"')


def test_the_boxes_of_two_categories_of_one_name_are_faults(tmp_path: Path):
    content = planted.coco_content(6)
    content["categories"].append({"id": 77, "name": "cat"})
    content["annotations"][1]["category_id"] = 77
    with pytest.raises(UserError, match=r'category that is there twice: 1 .*77 "cat"'):
        opened(planted.write_coco(tmp_path, content=content))


# --- labels of YOLO --------------------------------------------------------------------------------------


def yolo_text(change: Callable[[str], bytes]) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        for file in planted.write_yolo(folder).rglob("*.txt"):
            file.write_bytes(change(file.read_text()))
        return f"yolo:{folder}"

    return write


def outlined(text: str) -> bytes:
    """A diamond in place of a box."""
    number, x, y, w, h = (float(word) for word in text.split())
    points = [(x - w / 2, y), (x, y - h / 2), (x + w / 2, y), (x, y + h / 2)]
    return f"{int(number)} {' '.join(f'{a:.8f} {b:.8f}' for a, b in points)}\n".encode()


YOLO_TEXTS: dict[str, Callable[[str], bytes]] = {
    "mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "windows": lambda text: text.replace("\n", "\r\n").encode(),
    "utf-16": lambda text: text.encode("utf-16"),
    "float": lambda text: text.replace(" ", ".0 ", 1).encode(),
    "tabs": lambda text: text.replace(" ", "\t").encode(),
    "outline": outlined,
}


@pytest.mark.parametrize("kind", YOLO_TEXTS)
def test_labels_as_tools_and_systems_write_them_are_read(tmp_path: Path, kind: str):
    data = opened(yolo_text(YOLO_TEXTS[kind])(tmp_path))
    assert_planted(data)
    assert said(data, "outlines of objects: their boxes are used: 12") == (kind == "outline")
    if kind == "outline":
        np.testing.assert_allclose(data.part("train").areas, 20 * 16 / 2, rtol=1e-4)


def test_key_points_are_no_outline(tmp_path: Path):
    source = yolo_text(lambda text: text.replace("\n", " 0.1 0.2 0.9 0.8\n").encode())(tmp_path)
    (tmp_path / "data.yaml").write_text("names: [cat, dog, emu]\nkpt_shape: [2, 2]\n", encoding="utf-8")
    assert_planted(opened(source))


def test_classes_without_names_are_said(tmp_path: Path):
    (planted.write_yolo(tmp_path) / "data.yaml").rename(tmp_path / "one.yaml")
    (tmp_path / "two.yaml").write_text("lr: 0.1\n", encoding="utf-8")
    data = opened(f"yolo:{tmp_path}")
    assert data.classes == ("0", "1", "2")
    assert said(data, "names the classes: their numbers are their names")


def test_a_class_list_may_begin_with_a_mark(tmp_path: Path):
    (planted.write_yolo(tmp_path) / "data.yaml").unlink()
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\nemu\r\n")
    assert_planted(opened(f"yolo:{tmp_path}"))


# --- where YOLO's parts are ------------------------------------------------------------------------------


def yaml_of(folder: Path, text: str) -> None:
    (folder / "data.yaml").write_text(f"names: [cat, dog, emu]\n{text}", encoding="utf-8")


def with_lists(folder: Path, base: Path) -> str:
    for part in ("train", "val"):
        lines = "".join(f"./images/{part}/im{i:02}.png\r\n" for i in range(6))
        (base / f"{part}.txt").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    return "train: train.txt\nval: val.txt\n"


def moved(folder: Path, base: Path) -> str:
    """The images lie elsewhere, with a path that the file gives in full."""
    (base / "images").rename(folder.parent / "images")
    (base / "labels").rename(folder.parent / "labels")
    return f"path: {folder.parent}\ntrain: [images/train]\nval: [images/val]\n"


def swapped(folder: Path, base: Path) -> str:
    """What the file calls validation is not what the folder's name says; one image in train tells them apart."""
    (base / "images/val").rename(base / "images/first")
    (base / "labels/val").rename(base / "labels/first")
    (base / "images/train/im00.png").unlink()
    (base / "labels/train/im00.txt").unlink()
    return "train: images/first\nval: images/train\n"


def halved(folder: Path, base: Path) -> str:
    """Training images in two folders."""
    for kind, ending in (("images", "png"), ("labels", "txt")):
        (base / kind / "more").mkdir()
        for i in range(3):
            (base / kind / "train" / f"im{i:02}.{ending}").rename(base / kind / "more" / f"im{i:02}.{ending}")
    return "train: [images/more, images/train]\nval: images/val\n"


YAMLS: dict[str, Callable[[Path, Path], str]] = {
    "lists": with_lists,
    "elsewhere": moved,
    "swapped": swapped,
    "two folders": halved,
    "Roboflow": lambda folder, base: "train: ../images/train\nval: ../images/val\n",
    "backslashes": lambda folder, base: "train: images\\train\nval: .\\images\\val\n",
    "another machine's": lambda folder, base: "train: /content/set/train/images\nval: /content/set/val/images\n",
}


@pytest.mark.parametrize("kind", YAMLS)
@pytest.mark.parametrize("given", ["folder", "file"])
def test_the_parts_are_where_data_yaml_says(tmp_path: Path, kind: str, given: str):
    folder = planted.write_yolo(tmp_path / "set" / "one")
    yaml_of(folder, YAMLS[kind](folder, folder))
    data = opened(f"yolo:{folder}" if given == "folder" else folder / "data.yaml")
    if kind == "elsewhere":
        folder = folder.parent
    assert (data.train_count, data.val_count) == (6, 5 if kind == "swapped" else 6)
    assert_planted(data)
    assert said(data, 'is not there; "') == (kind == "another machine's")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: images/train\nval: /nowhere/val\n", 'val "/nowhere/val" is not there'),
        ("train: images/train\nval: [3]\n", "val is 3; expected a path"),
        ("train: images/train\nval: empty.txt\n", "lists no images"),
    ],
)
def test_a_part_that_is_not_there_is_no_held_back_share(tmp_path: Path, text: str, words: str):
    folder = planted.write_yolo(tmp_path)
    shutil.rmtree(folder / "images/val")
    (folder / "empty.txt").write_text("\n", encoding="utf-8")
    yaml_of(folder, text)
    with pytest.raises(UserError, match=words) as refused:
        opened(f"yolo:{folder}")
    assert "\n" not in str(refused.value)


def test_parts_in_capitals_are_parts(tmp_path: Path):
    folder = planted.write_yolo(tmp_path)
    for kind, name in (("images", "Images"), ("labels", "Labels")):
        (folder / kind / "train").rename(folder / kind / "Train")
        (folder / kind / "val").rename(folder / kind / "Valid")
        (folder / kind).rename(folder / name)
    data = opened(f"yolo:{folder}")
    assert_planted(data)
    assert_planted(data, "val")


def test_the_test_part_is_validated_on_only_if_there_is_no_other_and_that_is_said(tmp_path: Path):
    folder = planted.write_yolo(tmp_path)
    shutil.copytree(folder / "images/val", folder / "images/test")
    shutil.copytree(folder / "labels/val", folder / "labels/test")
    assert not said(opened(f"yolo:{folder}"), "is used for validation")
    shutil.rmtree(folder / "images/val")
    assert said(opened(f"yolo:{folder}"), 'images/test" is used for validation')


def test_images_of_training_in_validation_are_said(tmp_path: Path):
    folder = planted.write_yolo(tmp_path)
    yaml_of(folder, "train: images/train\nval: images/train\n")
    assert said(opened(f"yolo:{folder}"), "6 images are in train and in val")


@pytest.mark.parametrize("name", ["label", "annotations"])
def test_labels_that_are_nowhere_are_said_with_what_is_there(tmp_path: Path, name: str):
    folder = planted.write_yolo(tmp_path)
    (folder / "labels").rename(folder / name)
    with pytest.raises(UserError, match=rf'no labels for the 6 images .* expected ".*im00.txt" .* has .*{name}'):
        opened(f"yolo:{folder}")


def test_images_without_a_label_file_are_background_and_said(tmp_path: Path):
    folder = planted.write_yolo(tmp_path)
    (folder / "labels/train/im03.txt").unlink()
    data = opened(f"yolo:{folder}")
    assert data.part("train").counts.tolist() == [1, 1, 1, 0, 1, 1]
    assert said(data, "images without a label file: used as images without objects: 1 (im03.png)")


def test_labels_beside_their_images_are_read(tmp_path: Path):
    folder = planted.write_yolo(tmp_path)
    for part in ("train", "val"):
        for file in (folder / "labels" / part).iterdir():
            file.rename(folder / "images" / part / file.name)
    assert_planted(opened(f"yolo:{folder}"))


# --- VOC and COCO ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", ["im{}.jpg", "IM{}.PNG", "C:\\pets\\im{}.png", "../JPEGImages/im{}.png", "im{}"])
def test_voc_may_name_files_with_another_ending_folder_or_case(tmp_path: Path, named: str):
    folder = planted.write_voc(tmp_path)
    for i in range(6):
        file = folder / "Annotations" / f"im{i:02}.xml"
        file.write_text(file.read_text().replace(f"im{i:02}.png", named.format(f"{i:02}")))
    data = opened(f"voc:{folder}")
    np.testing.assert_allclose(np.concatenate([data.part("train").boxes, data.part("val").boxes]), BOXES)
    assert said(data, "another folder, ending or case than the annotations name: 6") == (".png" not in named[:7])


def test_a_name_that_two_files_could_be_is_refused(tmp_path: Path):
    folder = planted.write_voc(tmp_path)
    planted.write_image(folder / "JPEGImages" / "more" / "im00.bmp", 1)
    file = folder / "Annotations" / "im00.xml"
    file.write_text(file.read_text().replace("im00.png", "im00.jpg"))
    with pytest.raises(UserError, match=r"image that is missing: 1 \(im00.jpg \(.*im00.bmp.*\?\)\)"):
        opened(f"voc:{folder}")


def test_voc_sets_may_begin_with_a_mark_and_objects_may_be_polygons(tmp_path: Path):
    folder = planted.write_voc(tmp_path)
    (folder / "ImageSets/Main/train.txt").write_bytes(b"\xef\xbb\xbfim00\r\nim01\r\nim02\r\nim03\r\n")
    left, top, right, bottom = planted.corners(0)
    points = f"<x1>{left + 1}</x1><y1>{top + 1}</y1><x2>{right}</x2><y2>{top + 2}</y2><x3>{right}</x3><y3>{bottom}</y3>"
    text = planted.voc_xml(0).replace("bndbox>", "gone>").replace("</object>", f"<polygon>{points}</polygon></object>")
    (folder / "Annotations/im00.xml").write_text(text)
    data = opened(f"voc:{folder}")
    np.testing.assert_allclose(data.part("train").boxes, BOXES[:4])


def test_voc_boxes_of_another_size_than_the_file_are_refused(tmp_path: Path):
    folder = planted.write_voc(tmp_path)
    text = planted.voc_xml(0).replace("<object>", "<size><width>120</width><height>80</height></size><object>", 1)
    (folder / "Annotations/im00.xml").write_text(text)
    with pytest.raises(UserError, match=r"im00.png: 120 x 80 in the annotations, 60 x 40 in the file"):
        opened(f"voc:{folder}")


@pytest.mark.parametrize("named", ["/data/upload/{}", "images\\{}", "some/where/{}", "../images/{}"])
def test_coco_may_name_files_in_another_folder(tmp_path: Path, named: str):
    content = planted.coco_content(6)
    for image in content["images"]:
        image["file_name"] = named.format(image["file_name"])
    assert_planted(opened(planted.write_coco(tmp_path, content=content), val=f"coco:{tmp_path}/boxes.json"))


def test_two_entries_of_one_image_have_their_boxes_on_it(tmp_path: Path):
    content = planted.coco_content(6)
    content["images"].append({**content["images"][0], "id": 77})
    content["annotations"].append({"id": 999, "image_id": 77, "category_id": 10, "bbox": [30, 10, 9, 9]})
    data = opened(planted.write_coco(tmp_path, content=content), val=f"coco:{tmp_path}/boxes.json", on_bad="skip")
    assert data.part("train").boxes[:2].tolist() == [BOXES[0], [30.0, 10.0, 39.0, 19.0]]


@pytest.mark.parametrize("orientation", [3, 99])
def test_the_orientation_of_a_png_is_read_and_an_unknown_one_is_none(tmp_path: Path, orientation: int):
    planted.write_coco(tmp_path)
    exif = Image.Exif()
    exif[274] = orientation
    Image.open(tmp_path / "im00.png").save(tmp_path / "im00.png", exif=exif)
    if orientation == 99:
        assert_planted(opened(tmp_path / "boxes.json", val=f"coco:{tmp_path}/boxes.json"))
    else:
        with pytest.raises(UserError, match=r"im00\.png: EXIF orientation 3"):
            opened(tmp_path / "boxes.json")


def test_an_object_of_coco_with_an_outline_alone_has_the_box_of_it(tmp_path: Path):
    content = planted.coco_content(6)
    for i, entry in enumerate(content["annotations"]):
        left, top, right, bottom = planted.corners(i)
        entry["bbox"] = []
        entry["segmentation"] = [[left, top, right, top, right, bottom], [left, bottom, left, top, right, bottom]]
    data = opened(planted.write_coco(tmp_path, content=content), val=f"coco:{tmp_path}/boxes.json")
    assert_planted(data)
    assert said(data, "outlines of objects: their boxes are used: 12")


@pytest.mark.parametrize("given", ["coco:{}/train.json", "coco:{}", "{}"])
def test_images_beside_the_annotations_are_found(tmp_path: Path, given: str):
    planted.write_coco(tmp_path / "images")
    for name in ("train", "val"):
        shutil.copy(tmp_path / "images/boxes.json", tmp_path / f"{name}.json")
    (tmp_path / "images/boxes.json").unlink()
    data = opened(given.format(tmp_path), val=f"coco:{tmp_path}/val.json")
    assert_planted(data)
    assert_planted(data, "val")


def test_a_folder_as_roboflow_exports_it_is_read(tmp_path: Path):
    for part in ("train", "valid", "test"):
        planted.write_coco(tmp_path / part, name="_annotations.coco.json")
    data = opened(tmp_path)
    assert_planted(data)
    assert data.part("val").root.endswith("valid")


# --- what is left out, and what is scored ----------------------------------------------------------------


def test_an_image_that_lost_a_box_is_left_out_and_said(tmp_path: Path):
    """Its object would be learned as background."""
    content = planted.coco_content(6)
    content["annotations"][1]["bbox"][2] = -1
    data = opened(planted.write_coco(tmp_path, content=content), val=f"coco:{tmp_path}/boxes.json", on_bad="skip")
    assert "im01.png" not in data.part("train").names
    assert said(data, "images skipped, because one of their boxes was: 2 (im01.png; im01.png)")


def test_a_source_without_a_box_left_says_why(tmp_path: Path):
    content = planted.coco_content(6)
    for entry in content["annotations"]:
        entry["category_id"] = 4
    with pytest.raises(UserError, match=r"no boxes left for training in .*\n  unknown category: 12 \(annotation 100"):
        opened(planted.write_coco(tmp_path, content=content), val=f"coco:{tmp_path}/boxes.json", on_bad="skip")


def test_all_images_are_scored_by_the_names_of_their_classes(tmp_path: Path):
    source = DetectionSpec(f"coco:{planted.write_coco(tmp_path)}", workers=0)
    data = open_for_scoring(source, ("emu", "yak", "cat"))
    assert (data.train_count, data.val_count, data.classes) == (0, 6, ("emu", "yak", "cat"))
    assert data.part("val").labels.tolist() == [2, 0, 2, 0]
    assert said(data, "1 classes of the detector are not named here (yak)")
    assert said(data, "1 classes are unknown to the detector (dog): their 2 boxes are not scored")
    with pytest.raises(UserError, match="has no box of the classes yak; its classes are cat, dog, emu"):
        open_for_scoring(source, ("yak",))


def test_a_validation_part_alone_is_scored_and_does_not_train(tmp_path: Path):
    folder = planted.write_yolo(tmp_path)
    for kind in ("images", "labels"):
        shutil.rmtree(folder / kind / "train")
    assert open_for_scoring(DetectionSpec(f"yolo:{folder}", workers=0), planted.CLASSES).val_count == 6
    with pytest.raises(UserError, match="has images for validation and none for training"):
        opened(f"yolo:{folder}")
