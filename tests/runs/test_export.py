"""Exports: each format gives what the PyTorch student gives."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from limbeck.assembly.build import load_student
from limbeck.errors import UserError
from limbeck.recipes.recipe import Recipe
from limbeck.runs.export import ENDINGS, Format, export
from limbeck.runs.inspection import evaluate
from limbeck.runs.run import run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "run"
    recipe = Recipe(data="digits", student="small/cnn-2", method="alone", epochs=1, train_limit=100, batch_size=50)
    run(recipe, folder)
    return folder


def test_safetensors_is_exact(finished: Path, tmp_path: Path) -> None:
    exported = export(finished, format="safetensors", out=tmp_path / "student.safetensors")
    assert exported.parity == 0.0
    assert set(load_file(exported.path)) == set(load_student(finished).module.state_dict())


def test_torch_export(finished: Path) -> None:
    exported = export(finished, format="torch-export")
    assert exported.path == finished / "export" / "student.pt2"
    assert exported.parity < 1e-5
    assert torch.export.load(exported.path).module()(torch.zeros(5, 3, 8, 8)).shape == (5, 10)


def test_onnx(finished: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    pytest.importorskip("onnxscript", reason="the extra export is not installed")
    exported = export(finished, format="onnx", out=tmp_path / "student.onnx")
    assert 0 <= exported.parity < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["student.onnx"]


@pytest.mark.parametrize("format", ["safetensors", "torch-export"])
def test_a_backbone_returns_the_penultimate_feature(finished: Path, tmp_path: Path, format: Format) -> None:
    exported = export(finished, format=format, out=tmp_path / f"b{ENDINGS[format]}", backbone=True)
    assert exported.parity < 1e-5
    student = load_student(finished).module.eval()
    images = torch.randn(3, 3, 8, 8)
    found: list[torch.Tensor] = []
    student.fc.register_forward_pre_hook(lambda layer, given: found.append(given[0]))
    student(images)
    if format == "safetensors":
        assert set(load_file(exported.path)) == {name for name in student.state_dict() if not name.startswith("fc.")}
    else:
        torch.testing.assert_close(torch.export.load(exported.path).module()(images), found[0])


def test_an_existing_file_and_no_run_are_refused(finished: Path, tmp_path: Path) -> None:
    there = tmp_path / "student.pt2"
    there.write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        export(finished, format="torch-export", out=there)
    assert there.read_text() == "mine"
    with pytest.raises(UserError, match="holds no finished run"):
        export(tmp_path, format="onnx")


def test_a_students_card_and_weights_are_enough(finished: Path, tmp_path: Path) -> None:
    """As they are copied to another machine, without summary and recipe."""
    for name in ("student.json", "student.safetensors"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    assert load_student(tmp_path).name == "small/cnn-2"
    with pytest.raises(UserError, match=r"has no recipe.yaml, which names the images of its student; give --data"):
        evaluate(tmp_path)
    assert evaluate(tmp_path, data="digits") == evaluate(finished)
