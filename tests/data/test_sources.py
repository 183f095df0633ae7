import gzip
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import urllib.error
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.images import folder, picture
from limbeck.data import Data, DataSpec, arrays, open_data
from limbeck.errors import UserError
from limbeck.storage import untrusted


def opened(source: object, **options: object) -> Data:
    return open_data(DataSpec(source=str(source), workers=1, **options))


def val_pixels(data: Data) -> tuple[torch.Tensor, torch.Tensor | None]:
    (batch,) = data.val_loader(batch_size=data.val_count)
    return batch.images, batch.target


def test_spec_needs_no_torch():
    code = "import sys, limbeck.data.spec; sys.exit('torch' in sys.modules or 'PIL' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], check=False, env={**os.environ, "PYTHONPATH": "src"}).returncode
        == 0
    )


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("Train", "Test"), ("Training", "Testing"), ("train_set", "test-set"), ("TRAIN", "Val"), ("train", "dev"),
        ("train2017", "val2017"), ("training data", "Validation Data"), ("ILSVRC2012_img_train", "ILSVRC2012_img_val"),
    ],
)  # fmt: skip
def test_parts_are_known_in_any_case_and_by_their_usual_names(tmp_path: Path, train: str, val: str):
    folder(tmp_path / train, {"cat": 5, "ant": 4})
    folder(tmp_path / val, {"ant": 2, "cat": 3})
    folder(tmp_path / "extra", {"ant": 1})
    data = opened(tmp_path)
    assert (data.train_count, data.val_count, data.classes) == (9, 5, ("ant", "cat"))
    told = "no validation part, so the best epoch is chosen on" in " ".join(data.notes)
    assert told is ("test" in val.lower())
    assert f"not used, beside {train}: extra" in data.notes


def test_the_test_part_is_not_validated_on_beside_another(tmp_path: Path):
    for part, count in (("train", 5), ("Validation", 3), ("test", 2)):
        folder(tmp_path / part, {"a": count, "b": count})
    data = opened(tmp_path)
    assert data.val_count == 6
    assert "not used: test" in data.notes


def test_classes_may_be_called_like_parts(tmp_path: Path):
    folder(tmp_path / "1", {"bus": 4, "train": 4})
    assert opened(tmp_path / "1").classes == ("bus", "train")
    folder(tmp_path / "2", {"cat": 4, "eval": 4})
    assert opened(tmp_path / "2").classes == ("cat", "eval")


def test_what_is_left_out_is_said_and_folders_of_archivers_are_no_classes(tmp_path: Path):
    folder(tmp_path, {"a": 4, "b": 4})
    folder(tmp_path / "a", {"__MACOSX": 1, ".ipynb_checkpoints": 1})
    folder(tmp_path, {"__MACOSX": 1, "@eaDir": 2})
    for name in ("one.jfif", "two.jpe"):
        picture(1).save(tmp_path / "a" / name, "JPEG")
    (tmp_path / "a" / "three.heic").write_bytes(b"x")
    picture(1).save(tmp_path / "loose.png")
    data = opened(tmp_path)
    assert (data.classes, data.train_count + data.val_count) == (("a", "b"), 10)
    told = " ".join(data.notes)
    assert "do not end like an image are not read: 1 .heic" in told
    assert "1 images of" in told
    assert "lie in no class folder are not used" in told


def test_classes_that_are_missing_are_skipped_when_asked(tmp_path: Path):
    folder(tmp_path / "train", {"a": 4, "b": 4, "c": 3})
    (tmp_path / "train" / "d").mkdir()
    folder(tmp_path / "val", {"a": 1, "c": 2, "e": 5})
    with pytest.raises(UserError, match=r'train/d" holds no images: remove it, or .* --on-missing-classes skip'):
        opened(tmp_path)
    data = opened(tmp_path, on_missing_classes="skip")
    assert (data.classes, data.train_count, data.val_count) == (("a", "b", "c"), 11, 3)
    assert val_pixels(data)[1].tolist() == [0, 2, 2]
    told = " ".join(data.notes)
    for one in ("without images are not used: d", "no classes of train are not used: e", "of b"):
        assert one in told


def test_the_only_image_of_a_class_is_trained_on_when_asked(tmp_path: Path):
    data = opened(folder(tmp_path, {"a": 1, "b": 6}), on_missing_classes="skip")
    assert (data.train_count, data.val_count) == (6, 1)
    assert data.train_labels.tolist().count(0) == 1
    assert "no validation images of a" in data.notes


def test_a_test_part_without_labels_is_not_used(tmp_path: Path):
    folder(tmp_path / "train", {"a": 10, "b": 10})
    (tmp_path / "test").mkdir()
    picture(0).save(tmp_path / "test" / "x.png")
    data = opened(tmp_path)
    assert (data.train_count, data.val_count) == (18, 2)
    assert '"test" has no class folders and is not used' in data.notes


def not_utf8_file(root: Path) -> str:
    os.rename(bytes(folder(root, {"a": 2, "b": 2})) + b"/a/000.png", bytes(root) + b"/a/\xff.png")
    return str(root)


def not_utf8_class(root: Path) -> str:
    os.rename(bytes(folder(root, {"a": 2, "b": 2})) + b"/b", bytes(root) + b"/b\xff")
    return str(root)


def labelled_flat(root: Path, text: str, *, names: str = "pic{}.png") -> dict[str, object]:
    root.mkdir(exist_ok=True)
    for i in range(8):
        picture(i).save(root / names.format(i))
    (root.parent / "labels.csv").write_bytes(text.encode())
    return {"label_file": str(root.parent / "labels.csv"), "val_share": 0.25}


def rows(separator: str = ",", end: str = "\n", name: str = "pic{}.png", count: int = 8) -> str:
    return "".join(f"{name.format(i)}{separator}{'cat' if i % 2 else 'ant'}{end}" for i in range(count))


@pytest.mark.parametrize(
    "text",
    [
        rows(),
        "\ufefffile,class\r\n" + rows(end="\r\n"),
        "Image ID;split;Label\n" + rows(";x;", name="pic{}"),
        "filename\tbreed\n" + rows("\t", name="./photos/pic{}.png"),
    ],
    ids=["plain", "header, mark and Windows lines", "stems and more columns", "tabs and folders"],
)
def test_a_flat_folder_with_a_file_of_labels(tmp_path: Path, text: str):
    options = labelled_flat(tmp_path / "photos", text.replace("photos/", ""))
    data = opened(tmp_path / "photos", **options)
    assert (data.classes, data.train_count, data.val_count) == (("ant", "cat"), 6, 2)
    part = data._parts["train"]
    assert [int(name[3]) % 2 for name in part.names] == part.labels.tolist()


def test_a_file_of_labels_for_both_parts_and_images_without_a_row(tmp_path: Path):
    options = labelled_flat(tmp_path / "set" / "train", "") if (tmp_path / "set").mkdir() is None else {}
    labelled_flat(tmp_path / "set" / "val", "")
    both = [f"{part}/pic{i}.png,{i % 2}\n" for part in ("train", "val") for i in range(8) if i != 3]
    path = tmp_path / "labels.csv"
    path.write_text("".join(both))
    data = opened(tmp_path / "set", label_file=str(path))
    assert (data.classes, data.train_count, data.val_count) == (("0", "1"), 7, 7)
    assert f'1 images of "{tmp_path}/set/val" have no row in "{path}" and are not used' in data.notes
    assert options


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (rows() + "none.png,cat\n", '1 of its 9 rows name no image, or several, in .*, first "none.png"'),
        (rows() + "pic0.png,cat\n", 'line 9: "pic0.png" has the classes "ant" and "cat"'),
        (rows(count=7) + "pic7.png,\n", "line 8: no class; expected a row"),
        ("a,b,c\nx,y,z\n", r"has 3 columns \(a, b, c\): expected two, FILE,CLASS"),
        ("", "is empty: expected"),
        ("pic0.png,cat\n", "only 1 class"),
    ],
)
def test_bad_files_of_labels_are_one_line(tmp_path: Path, text: str, message: str):
    options = labelled_flat(tmp_path / "photos", text)
    with pytest.raises(UserError, match=message) as caught:
        opened(tmp_path / "photos", **options)
    assert "\n" not in str(caught.value)


def deep(root: Path, bits: int, *, color: bool = False) -> Path:
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("a", "b"):
            (root / part / name).mkdir(parents=True)
            for i in range(3):
                values = random.integers(0, 1 << bits, (8, 8), dtype=np.uint16)
                values[0, 0] = (1 << bits) - 1
                image = Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB") if color else values
                (image if color else Image.fromarray(image)).save(root / part / name / f"{i}.png")
    return root


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_values_in_sixteen_bit_files_are_spread_over_all_of_the_range(tmp_path: Path, bits: int):
    data = opened(deep(tmp_path, bits))
    assert float(val_pixels(data)[0].max()) == 1.0
    assert data.bits == bits
    assert any("16-bit images are read as" in note for note in data.notes) is (bits < 16)


def test_nearly_black_images_are_said_to_be(tmp_path: Path):
    data = opened(deep(tmp_path, 12, color=True))
    assert any("nearly black: the largest value of 6 is 15 of 255" in note for note in data.notes)


@pytest.mark.parametrize("val", ["val", "valid", "validation", "test"])
def test_folder_with_train_and_val(tmp_path: Path, val: str):
    folder(tmp_path / "train", {"cat": 5, "ant": 4}, width=15)
    folder(tmp_path / val, {"ant": 2, "cat": 3})
    data = opened(tmp_path)
    assert (data.name, data.classes) == (tmp_path.name, ("ant", "cat"))
    assert (data.train_count, data.val_count, data.size) == (9, 5, 12)
    _, target = val_pixels(data)
    assert target is not None
    assert target.tolist() == [0, 0, 1, 1, 1]


def test_folder_of_class_folders_holds_back_a_fixed_share(tmp_path: Path):
    folder(tmp_path, {"a": 20, "b": 10, "c": 2})
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".git").mkdir()
    data = opened(tmp_path, val_share=0.2)
    assert (data.train_count, data.val_count) == (25, 7)  # 4 + 2 + 1
    assert "7 images held back" in data.notes[0]
    assert data.fingerprint == opened(tmp_path, val_share=0.2).fingerprint
    assert data.fingerprint != opened(tmp_path, val_share=0.5).fingerprint


def test_nested_folders_links_and_second_folder(tmp_path: Path):
    folder(tmp_path / "a" / "x", {"cat": 2})
    folder(tmp_path / "a" / "y", {"cat": 3})
    folder(tmp_path / "a", {"dog": 4})
    os.rename(tmp_path / "a" / "x", tmp_path / "a" / "cat")
    os.rename(tmp_path / "a" / "y", tmp_path / "outside")
    os.symlink(tmp_path / "outside", tmp_path / "a" / "cat" / "more")
    os.symlink(tmp_path / "a" / "cat", tmp_path / "a" / "cat" / "loop")
    folder(tmp_path / "b", {"cat": 1, "dog": 1})
    data = opened(tmp_path / "a", val=str(tmp_path / "b"))
    assert (data.train_count, data.val_count, data.classes) == (9, 2, ("cat", "dog"))


def test_folder_without_labels(tmp_path: Path):
    folder(tmp_path, {"a": 6, "b": 4})
    picture(1).save(tmp_path / "loose.png")
    data = opened(tmp_path, labels=False)
    assert (data.classes, data.train_count, data.val_count) == ((), 10, 1)
    assert next(iter(data.train_loader(batch_size=4, seed=0))).target is None
    folder(tmp_path / "val", {"z": 3})
    folder(tmp_path / "train", {"z": 5})
    assert opened(tmp_path, labels=False).val_count == 3


def test_subset_and_limit_are_balanced_and_nested(tmp_path: Path):
    folder(tmp_path / "train", {"a": 20, "b": 10})
    folder(tmp_path / "val", {"a": 1, "b": 1})

    def train(**options: object) -> dict[str, int]:
        data = opened(tmp_path, **options)
        part = data._parts["train"]
        return dict(zip(part.names, part.labels.tolist(), strict=True))

    half, fifth = train(subset=0.5), train(subset=0.2)
    assert (len(half), sum(half.values())) == (15, 5)
    assert (len(fifth), sum(fifth.values())) == (6, 2)
    assert fifth.items() <= half.items()
    eight = train(train_limit=8)
    assert (len(eight), sum(eight.values())) == (8, 4)
    assert eight.items() <= train(train_limit=25).items()
    assert sum(train(train_limit=25).values()) == 10  # b has no more
    assert len(train(train_limit=1000)) == 30


def test_fingerprint_sees_names_sizes_and_labels(tmp_path: Path):
    folder(tmp_path, {"a": 6, "b": 6})
    first = opened(tmp_path).fingerprint
    assert first == opened(tmp_path).fingerprint
    assert first != opened(tmp_path, labels=False).fingerprint
    picture(99, 40, 40).save(tmp_path / "a" / "000.png")
    assert first != opened(tmp_path).fingerprint


def test_digits():
    data = opened("digits")
    assert (data.name, data.size, len(data.classes), data.flip) == ("digits", 8, 10, False)
    assert (data.train_count, data.val_count) == (1297, 500)
    images, target = val_pixels(data)
    assert target is not None
    assert torch.bincount(target).min() >= 48
    assert images.max() == 1
    assert torch.equal(images[:, 0], images[:, 2])
    assert opened("digits", size=16).size == 16
    assert opened("digits", labels=False).classes == ()


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">{values.ndim + 1}I", 0x0800 + values.ndim, *values.shape) + values.tobytes()


@pytest.mark.parametrize("compressed", [True, False])
def test_fashion_mnist_from_idx_files(tmp_path: Path, compressed: bool):
    for stem, n in (("train", 30), ("t10k", 10)):
        pixels = np.random.default_rng(n).integers(0, 256, (n, 28, 28), dtype=np.uint8)
        for name, values in (
            (f"{stem}-images-idx3", pixels),
            (f"{stem}-labels-idx1", np.arange(n, dtype=np.uint8) % 10),
        ):
            data = idx(values)
            path = tmp_path / f"{name}-ubyte{'.gz' if compressed else ''}"
            path.write_bytes(gzip.compress(data) if compressed else data)
    data = opened(f"fashion-mnist:{tmp_path}")
    assert (data.size, data.train_count, data.val_count, data.classes[9]) == (28, 30, 10, "Ankle boot")
    images, _ = val_pixels(data)
    np.testing.assert_array_equal((images[:, 1] * 255).round().numpy(), pixels)
    next(tmp_path.glob("t10k-images*")).write_bytes(b"broken")
    with pytest.raises(UserError, match="not a complete IDX file"):
        opened(f"fashion-mnist:{tmp_path}")


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10", "cifar100"])
def test_no_network_is_one_line(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.delenv("LIMBECK_CACHE")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(arrays, "SYSTEM_FASHION_MNIST", tmp_path / "nowhere")
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(UserError, match=f"{name} is not in .* cannot be downloaded") as caught:
        opened(name)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / ".cache" / "limbeck") in str(caught.value)


def test_cifar_reads_only_files_with_the_right_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import hashlib

    from torchvision.datasets import CIFAR10

    home = tmp_path / CIFAR10.base_folder
    home.mkdir()
    rng = np.random.default_rng(0)

    def write(name: str, content: object) -> str:
        (home / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((home / name).read_bytes()).hexdigest()

    def batch(n: int) -> dict[str, object]:
        return {"data": rng.integers(0, 256, (n, 3072), dtype=np.uint8), "labels": [i % 10 for i in range(n)]}

    sums = [["data_batch_1", write("data_batch_1", batch(20))]]
    meta = write("batches.meta", {"label_names": [f"c{i}" for i in range(10)]})
    monkeypatch.setattr(CIFAR10, "train_list", sums)
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", write("test_batch", batch(10))]])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": meta})
    data = opened(f"cifar10:{tmp_path}")
    assert (data.size, data.train_count, data.val_count, data.classes[3]) == (32, 20, 10, "c3")
    (home / "data_batch_1").write_bytes(pickle.dumps(batch(20)))
    with pytest.raises(UserError, match="checksums are wrong"):
        opened(f"cifar10:{tmp_path}")


def test_imagenet_is_a_folder_with_its_usual_size(tmp_path: Path):
    folder(tmp_path / "train", {"n01": 3, "n02": 3})
    folder(tmp_path / "val", {"n01": 1, "n02": 1})
    data = opened(f"imagenet:{tmp_path}")
    assert (data.name, data.size, data.classes) == ("imagenet", 224, ("n01", "n02"))


@pytest.mark.filterwarnings("ignore")  # third-party packages on import
@pytest.mark.parametrize("named", [True, False])
def test_hub_set(tmp_path: Path, named: bool, monkeypatch: pytest.MonkeyPatch):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["no", "yes"]) if named else datasets.Value("string"),
        }
    )

    def rows(n: int) -> object:
        labels = [i % 2 for i in range(n)] if named else [("no", "yes")[i % 2] for i in range(n)]
        return datasets.Dataset.from_dict({"image": [picture(i) for i in range(n)], "label": labels}, features=features)

    splits = datasets.DatasetDict({"train": rows(8), "test": rows(4)})
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: {("us/er", "small"): splits}[name, config])
    data = opened("hf/us/er:small")
    assert (data.classes, data.train_count, data.val_count, data.size) == (("no", "yes"), 8, 4, 12)
    images, target = val_pixels(data)
    assert target is not None
    assert target.tolist() == [0, 1, 0, 1]
    np.testing.assert_array_equal((images[1] * 255).round().numpy(), np.asarray(picture(1)).transpose(2, 0, 1))
    assert opened("hf/us/er:small", labels=False).classes == ()
    monkeypatch.setattr(untrusted, "MOST_FILE", 100)
    with pytest.raises(UserError, match=r"cannot read image .*: the file has 0 MiB, and images of at most 0 MiB"):
        val_pixels(opened("hf/us/er:small"))
    monkeypatch.undo()
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: {("us/er", "small"): splits}[name, config])
    del splits["train"]
    with pytest.raises(UserError, match='no split "train"'):
        opened("hf/us/er:small")
    with pytest.raises(UserError, match='cannot load "hf/other"'):
        opened("hf/other")


def members(path: Path, *names: tuple[str, bytes | int]) -> str:
    """A tar file; a number stands for the picture of that number."""
    with tarfile.open(path, "w") as tar:
        for name, content in names:
            out = io.BytesIO()
            if isinstance(content, int):
                picture(content).save(out, "PNG")
            else:
                out.write(content)
            member = tarfile.TarInfo(name)
            member.size = len(out.getvalue())
            tar.addfile(member, io.BytesIO(out.getvalue()))
    return f"shards:{path}"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([("a.jpg", 1), ("a.png", 2), ("a.cls", b"0")], 'several images of the sample "a": a.jpg and a.png'),
        ([("v1.0_1.png", 1), ("v1.0_2.png", 2)], 'several images of the sample "v1": v1.0_1.png and v1.0_2.png'),
        ([("a.png", 1), ("a.cls", b"1"), ("a.json", b'{"label": 2}')], "two labels: a.cls says 1, a.json says 2"),
        ([("a.png", 1), ("a.cls", b"cat")], "no label: expected a.cls with a class number .* got b'cat'"),
        ([("a.png", 1)], 'image "a" in shard .* has no label'),
        ([("a.png", 1), ("a.json", b'{"label": true}')], 'image "a" in shard .* has no label'),
        ([("a.heic", b"x"), ("a.cls", b"1")], "no images in the shards .*1 samples .* first a.heic"),
    ],
)
def test_bad_shards_are_one_line(tmp_path: Path, names: list[tuple[str, bytes | int]], message: str):
    pytest.importorskip("webdataset")
    with pytest.raises(UserError, match=message):
        opened(members(tmp_path / "x.tar", *names))


def test_shards_take_the_right_image_and_read_labels_as_people_write_them(tmp_path: Path):
    pytest.importorskip("webdataset")
    labels = [b"000", b"\xef\xbb\xbf1\r\n", b"2.0", b" 1 "]
    names: list[tuple[str, bytes | int]] = []
    for i, label in enumerate(labels * 3):
        names += [(f"{i:02}.depth.png", 99), (f"{i:02}.png", i), (f"{i:02}.cls", label)]
        names += [(f"{i:02}.json", b'{"caption": "x"}')]
    data = opened(members(tmp_path / "x.tar", *names, ("zz.heic", b"x")), val_share=0.25)
    assert data.classes == ("0", "1", "2")
    part = data._parts["val"]
    numbers = [int(name.rpartition("/")[2]) for name in part.names]
    assert part.labels.tolist() == [[0, 1, 2, 1][n % 4] for n in numbers]
    for n, image in zip(numbers, val_pixels(data)[0], strict=True):
        np.testing.assert_array_equal((image * 255).round().numpy(), np.asarray(picture(n)).transpose(2, 0, 1))
    assert any("1 samples of" in note and "first zz.heic" in note for note in data.notes)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("columns", "labels", "message"),
    [
        (("image",), [0, None, 1, 0], "1 of 4 rows have no label, first row 1"),
        (("image",), ["a", None, "b", "a"], "1 of 4 rows have no label, first row 1"),
        (("image",), [[0], [0, 1], [1], [0]], r"several labels in a row \(\[0\]\)"),
        (("depth", "photograph"), [0, 1, 0, 1], r"several columns of images \(depth, photograph\)"),
    ],
)
def test_bad_hub_sets_are_one_line(
    columns: tuple[str, ...], labels: list[object], message: str, monkeypatch: pytest.MonkeyPatch
):
    datasets = pytest.importorskip("datasets")
    table = {column: [picture(i) for i in range(4)] for column in columns} | {"label": labels}
    rows_ = datasets.Dataset.from_dict(table)
    for column in columns:
        rows_ = rows_.cast_column(column, datasets.Image())
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: datasets.DatasetDict({"train": rows_}))
    with pytest.raises(UserError, match=message):
        opened("hf/x")


@pytest.mark.filterwarnings("ignore")
def test_a_hub_set_with_masks_and_a_test_split_without_labels(monkeypatch: pytest.MonkeyPatch):
    datasets = pytest.importorskip("datasets")

    def table(labels: list[int]) -> object:
        count = range(len(labels))
        images = {"mask": [picture(99) for _ in count], "image": [picture(i) for i in count]}
        found = datasets.Dataset.from_dict({**images, "label": labels})
        for column in images:
            found = found.cast_column(column, datasets.Image())
        return found.cast_column("label", datasets.ClassLabel(names=["a", "b"]))

    splits = datasets.DatasetDict({"Training": table([0, 1] * 6), "test": table([-1] * 3)})
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: splits)
    data = opened("hf/x", val_share=0.25)
    assert (data.train_count, data.val_count) == (8, 4)
    first = np.asarray(picture(int(data._parts["val"].names[0]))).transpose(2, 0, 1)
    np.testing.assert_array_equal((val_pixels(data)[0][0] * 255).round().numpy(), first)
    told = " ".join(data.notes)
    assert 'images of column "image", labels of column "label"' in told
    assert 'split "test" has no labels and is not used' in told


def shard(path: Path, first: int, n: int, *, kind: str = "cls") -> None:
    with tarfile.open(path, "w") as tar:
        for i in range(first, first + n):
            image = io.BytesIO()
            picture(i).save(image, "PNG")
            label = str(i % 3) if kind == "cls" else json.dumps({"label": i % 3})
            for name, content in ((f"{i:04d}.png", image.getvalue()), (f"{i:04d}.{kind}", label.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["cls", "json"])
def test_shards(tmp_path: Path, kind: str):
    pytest.importorskip("webdataset")
    for k in range(3):
        shard(tmp_path / f"train-{k}.tar", 10 * k, 10, kind=kind)
    shard(tmp_path / "val.tar", 100, 4, kind=kind)
    data = opened(f"shards:{tmp_path}/train-{{0..2}}.tar", val=f"{tmp_path}/val.tar")
    assert (data.train_count, data.val_count, data.classes) == (30, 4, ("0", "1", "2"))
    images, target = val_pixels(data)
    assert target is not None
    assert target.tolist() == [1, 2, 0, 1]
    np.testing.assert_array_equal((images[0] * 255).round().numpy(), np.asarray(picture(100)).transpose(2, 0, 1))
    assert opened(f"shards:{tmp_path}/train-*.tar").val_count == 3
    loader = data.train_loader(batch_size=10, seed=0)
    indices = torch.cat([batch.index for batch in loader])
    assert sorted(indices.tolist()) == list(range(30))
    with pytest.raises(UserError, match=r"train-3\.tar.* does not exist"):
        opened(f"shards:{tmp_path}/train-{{0..3}}.tar")
    (tmp_path / "train-1.tar").write_bytes(b"no tar")
    with pytest.raises(UserError, match="cannot be read as an uncompressed tar"):
        opened(f"shards:{tmp_path}/train-*.tar")


def two_classes(root: Path) -> Path:
    return folder(root / "train", {"a": 4, "b": 4}).parent


def empty(root: Path) -> str:
    (root / "nothing").mkdir()
    return str(root / "nothing")


def one_class(root: Path) -> str:
    return str(folder(root, {"cat": 3}))


def other_classes(root: Path) -> str:
    folder(two_classes(root) / "val", {"a": 1, "c": 1})
    return str(root)


def flat(root: Path) -> str:
    picture(0).save(root / "x.png")
    return str(root)


def only_val(root: Path) -> str:
    folder(root / "val", {"a": 1, "b": 1})
    return str(root)


def no_images(root: Path) -> str:
    (root / "a").mkdir()
    (root / "a" / "x.txt").write_text("text")
    (root / "b").mkdir()
    return str(root)


def empty_class(root: Path) -> str:
    (two_classes(root) / "train" / "c").mkdir()
    return str(root)


def single_images(root: Path) -> str:
    return str(folder(root, {"a": 1, "b": 4}))


def class_first(root: Path) -> str:
    for name in ("a", "b"):
        folder(root / name, {"train": 3, "test": 2})
    return str(root)


def wrapped(root: Path) -> str:
    folder(root / "inner" / "train", {"a": 2, "b": 2})
    return str(root)


def two_trainings(root: Path) -> str:
    for name in ("training", "train_set", "val"):
        folder(root / name, {"a": 2, "b": 2})
    return str(root)


BAD: list[tuple[Callable[[Path], str], dict[str, object], str]] = [
    (lambda _: "digit", {}, 'no data source "digit" .did you mean "digits"'),
    (lambda root: str(root / "missing"), {}, "does not exist"),
    (lambda root: f"{flat(root)}/x.png", {}, "is a file"),
    (empty, {}, "is empty"),
    (one_class, {}, r'only one class \("cat"\)'),
    (other_classes, {}, r"1 of train are missing \(b\) and 1 are not in train \(c\)"),
    (flat, {}, "no class folders in .*, but 1 images; known layouts: FOLDER/CLASS/images; .* --labels FILE.csv"),
    (not_utf8_file, {}, r"the name b'\\xff.png' in .*/a\" is not UTF-8: rename it"),
    (not_utf8_class, {}, r"the name b'b\\xff' in .* is not UTF-8: rename it"),
    (class_first, {}, "holds the parts test, train: expected train/a and val/a"),
    (wrapped, {}, r'only one class \("inner" and has folders itself\)'),
    (two_trainings, {}, "which part is to be trained on: train_set, training"),
    (flat, {"labels": False}, "too few images"),
    (only_val, {}, r"has val/ but no train/"),
    (no_images, {}, "no images in"),
    (no_images, {"labels": False}, "no images in"),
    (empty_class, {}, 'train/c" holds no images'),
    (single_images, {}, 'class "a" .* no image left to train on; --on-missing-classes skip'),
    (lambda root: str(two_classes(root)), {"val": "nowhere"}, '"nowhere" does not exist'),
    (lambda root: str(two_classes(root)), {"train_limit": 1}, "train limit 1 is less than the 2 classes"),
    (lambda _: "digits", {"val": "x"}, "takes no second folder"),
    (lambda _: "digits:x", {}, "embedded"),
    (lambda _: "imagenet", {}, "imagenet:FOLDER"),
    (lambda root: f"fashion-mnist:{flat(root)}", {}, "no Fashion-MNIST in"),
    (lambda root: f"cifar100:{flat(root)}", {}, "no CIFAR-100 in"),
]


@pytest.mark.parametrize(("make", "options", "message"), BAD)
def test_bad_input_is_one_line(tmp_path: Path, make: Callable[[Path], str], options: dict[str, object], message: str):
    with pytest.raises(UserError, match=message) as caught:
        opened(make(tmp_path), **options)
    assert "\n" not in str(caught.value)


def linked_to_itself(root: Path) -> str:
    os.symlink("self", folder(root, {"a": 2, "b": 2}) / "a" / "self")
    return str(root)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: str(root / ("n" * 300)), 'n" cannot be used: file name too long'),
        (lambda root: f"{two_classes(root)}/{'n' * 300}", 'n" cannot be used: file name too long'),
        (linked_to_itself, 'a/self" cannot be used: too many levels of symbolic links'),
    ],
)
def test_errors_of_paths_are_one_line(tmp_path: Path, make: Callable[[Path], str], message: str):
    with pytest.raises(UserError, match=message):
        opened(make(tmp_path))


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), FileNotFoundError(2, "No such file")])
def test_a_class_folder_that_cannot_be_listed_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
):
    folder(tmp_path, {"a": 2, "b": 2})
    plain = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("/b"):
            raise type(error)(error.errno, error.strerror, str(path))
        return plain(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=f'/b" cannot be used: {error.strerror.lower()}'):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sorce": "x"}, 'no field "sorce" .did you mean "source"'),
        ({}, '"source": field required'),
        ({"source": "x", "val_share": 1.5}, '"val_share": .* less than 1, got 1.5'),
        ({"source": "x", "augmentation": "weak"}, "'none', 'standard', 'randaugment' or 'strong', got 'weak'"),
    ],
)
def test_bad_spec_is_one_line(fields: dict[str, object], message: str):
    with pytest.raises(UserError, match=message) as caught:
        DataSpec(**fields)
    assert "\n" not in str(caught.value)
