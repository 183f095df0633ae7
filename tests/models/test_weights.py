import argparse
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from limbeck.distributed import sharding
from limbeck.errors import UserError
from limbeck.models import build
from limbeck.models.lookalike import lookalike
from limbeck.models.weights import Weights, fit_weights, read_weights

NAME = "cifar/resnet8"


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return build(NAME, num_classes=3).module.state_dict()


def same(state: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return state.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in state.items())


def load(path: Path, *, num_classes: int = 3, allow_new_head: bool = False):
    return build(NAME, num_classes=num_classes, weights=path, allow_new_head=allow_new_head)


def prefixed(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


def test_safetensors_and_run_folder(tmp_path: Path, state):
    save_file(state, tmp_path / "net.safetensors")
    model = load(tmp_path / "net.safetensors")
    assert same(model.module.state_dict(), state)
    assert model.weights == "file:net.safetensors"

    run = tmp_path / "my-run"
    run.mkdir()
    save_file(state, run / "student.safetensors")
    with pytest.raises(UserError, match="no finished run"):
        load(run)
    (run / "recipe.yaml").write_text("name: x\n")
    model = load(run)
    assert same(model.module.state_dict(), state)
    assert model.weights == "run:my-run"
    (run / "recipe.yaml").unlink()
    (run / "student.json").write_text('{"model": "cifar/resnet8"}')
    assert same(load(run).module.state_dict(), state)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "backbone.", "student.", "module._orig_mod.model."]
)
def test_prefixes_of_wrappers_come_off(tmp_path: Path, state, prefix: str):
    torch.save(prefixed(state, prefix), tmp_path / "net.pt")
    assert same(load(tmp_path / "net.pt").module.state_dict(), state)


@pytest.mark.parametrize(
    "nest",
    [
        lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"state": {}}},
        lambda s: {"model": s, "args": argparse.Namespace(lr=0.1), "best_acc": np.float64(74.3)},
        lambda s: {"model_ema": s},
        lambda s: {"teacher": prefixed(s, "module.backbone.")},
        lambda s: {"net": {"state_dict": s}},
        lambda s: {"state_dict": prefixed(s, "student.") | prefixed({k: v + 1 for k, v in s.items()}, "critic.")},
        lambda s: {key: value for key, value in s.items() if "num_batches" not in key},
    ],
)
@pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "tar", "th", "weights"])
def test_checkpoints_of_training_scripts(tmp_path: Path, state, nest, suffix: str):
    torch.save(nest(state), tmp_path / f"net.{suffix}")
    loaded = load(tmp_path / f"net.{suffix}").module.state_dict()
    assert same(loaded, state)


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


def test_pickles_that_need_code_are_refused(tmp_path: Path, state):
    torch.save({"state_dict": state, "x": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil()))
    torch.save(build(NAME, num_classes=3).module, tmp_path / "whole.pt")
    for name in ("evil.pt", "plain.pt", "whole.pt"):
        with pytest.raises(UserError, match=f'"{name}" cannot be read without running code') as caught:
            load(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("net.pt", b"", "not a readable torch file|without running code"),
        ("net.pt", b"not a checkpoint", "not a readable torch file|without running code"),
        ("net.safetensors", b"nor this", "not a readable safetensors file"),
        ("net.onnx", b"", "expected a .safetensors file or a state dict that torch saved"),
    ],
)
def test_files_that_are_no_weights(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load(tmp_path / name)


def test_other_contents(tmp_path: Path):
    with pytest.raises(UserError, match="no such file or folder"):
        load(tmp_path / "absent.pt")
    torch.save({"epoch": 3, "loss": 0.1}, tmp_path / "net.pt")
    with pytest.raises(UserError, match="holds no state dict: its keys are epoch, loss"):
        load(tmp_path / "net.pt")
    torch.save(torch.zeros(3), tmp_path / "net.pt")
    with pytest.raises(UserError, match="holds a Tensor, not a state dict"):
        load(tmp_path / "net.pt")


def test_truncated_file(tmp_path: Path, state):
    torch.save(state, tmp_path / "net.pt")
    (tmp_path / "net.pt").write_bytes((tmp_path / "net.pt").read_bytes()[:-2000])
    with pytest.raises(UserError, match="not a readable torch file"):
        load(tmp_path / "net.pt")


def test_a_mismatch_is_a_table(tmp_path: Path, state):
    del state["bn1.weight"]
    state["conv1.weight"] = torch.zeros(16, 1, 3, 3)
    state["extra"] = torch.zeros(1)
    save_file(state, tmp_path / "net.safetensors")
    with pytest.raises(UserError) as caught:
        load(tmp_path / "net.safetensors", allow_new_head=True)
    assert str(caught.value).splitlines() == [
        "weights file:net.safetensors do not fit cifar/resnet8: 1 missing, 1 unexpected, 1 of another shape",
        "  missing        bn1.weight",
        "  unexpected     extra",
        "  another shape  conv1.weight: file (16, 1, 3, 3), model (16, 3, 3, 3)",
    ]


def test_the_table_is_short(tmp_path: Path):
    save_file(build("cifar/vgg8", num_classes=3).module.state_dict(), tmp_path / "net.safetensors")
    with pytest.raises(UserError, match=r"missing +\.\.\. and \d+ more") as caught:
        load(tmp_path / "net.safetensors")
    assert len(str(caught.value).splitlines()) <= 1 + 3 * 11


@pytest.mark.parametrize("drop", [False, True])
def test_another_classifier_is_refused_or_left_fresh(tmp_path: Path, state, drop: bool):
    if drop:
        state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    save_file(state, tmp_path / "net.safetensors")
    with pytest.raises(UserError, match="have another classifier than cifar/resnet8"):
        load(tmp_path / "net.safetensors", num_classes=5)
    model = load(tmp_path / "net.safetensors", num_classes=5, allow_new_head=True)
    assert model.new_head
    loaded = model.module.state_dict()
    assert loaded["fc.weight"].shape == (5, 64)
    assert all(torch.equal(loaded[key], value) for key, value in state.items() if not key.startswith("fc."))


def test_a_fitting_classifier_is_kept(tmp_path: Path, state):
    save_file(state, tmp_path / "net.safetensors")
    assert not load(tmp_path / "net.safetensors", allow_new_head=True).new_head


def test_headless_takes_all_but_the_classifier(tmp_path: Path, state):
    save_file(state, tmp_path / "net.safetensors")
    model = load(tmp_path / "net.safetensors", num_classes=0)
    assert not model.new_head
    assert same(model.module.state_dict(), {key: value for key, value in state.items() if not key.startswith("fc.")})
    save_file(model.module.state_dict(), tmp_path / "headless.safetensors")
    assert same(load(tmp_path / "headless.safetensors", num_classes=0).module.state_dict(), model.module.state_dict())


def test_both_heads_of_a_distilled_vit_are_fresh(tmp_path: Path):
    name = "timm/deit_tiny_distilled_patch16_224"
    state = build(name, num_classes=3, size=32).module.state_dict()
    save_file(state, tmp_path / "net.safetensors")
    model = build(name, num_classes=4, size=32, weights=tmp_path / "net.safetensors", allow_new_head=True)
    assert model.new_head
    assert model.module.state_dict()["head_dist.weight"].shape == (4, 192)
    assert torch.equal(model.module.state_dict()["dist_token"], state["dist_token"])


def test_origin_of_a_run_given_with_dots(tmp_path: Path, state, monkeypatch: pytest.MonkeyPatch):
    save_file(state, tmp_path / "student.safetensors")
    (tmp_path / "recipe.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    assert read_weights(Path()).origin == f"run:{tmp_path.name}"


def test_weights_of_another_model_say_which_one(tmp_path: Path):
    """By their names and shapes, whatever their classes; by its card where a run folder has one."""
    other = build("cifar/wrn_16_2", num_classes=7).module.state_dict()
    save_file(other, tmp_path / "net.safetensors")
    with pytest.raises(UserError, match=r"do not fit cifar/resnet8: .*; they are those of cifar/wrn_16_2\n"):
        load(tmp_path / "net.safetensors")
    run = tmp_path / "run"
    run.mkdir()
    save_file(other, run / "student.safetensors")
    (run / "student.json").write_text('{"model": "mine:net"}')
    with pytest.raises(UserError, match=r"do not fit .*; they are those of mine:net\n"):
        load(run)
    save_file({"odd": torch.zeros(2)}, tmp_path / "odd.safetensors")
    with pytest.raises(UserError, match="0 of another shape\n"):
        load(tmp_path / "odd.safetensors")


def test_the_models_of_timm_and_torchvision_that_are_called_alike_are_compared():
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        lite2 = timm.create_model("tf_efficientnet_lite2", num_classes=5).state_dict()
        resnet34 = pytest.importorskip("torchvision").models.resnet34().state_dict()
    assert lookalike(lite2, "timm/tf_efficientnet_lite0") == "timm/tf_efficientnet_lite2"
    assert lookalike(resnet34, "torchvision/resnet18") == "torchvision/resnet34"


def test_state_dicts_lose_no_versions():
    """MNASNet does not load without its version, which a file of tensors cannot hold."""
    name = "torchvision/mnasnet0_5"
    model = build(name, num_classes=3, size=32).module
    state = {key: value + 1 if value.is_floating_point() else value for key, value in model.state_dict().items()}
    sharding.load(model, state)
    assert same(model.state_dict(), state)


def test_names_of_an_older_version_are_read_as_the_models_parts_translate_them():
    """torchvision's published ViTs: the layers of their MLPs had other names when they were saved."""
    mlp = pytest.importorskip("torchvision.models.vision_transformer").MLPBlock
    model, source = (nn.Sequential(mlp(4, 6, 0.0), nn.Linear(4, 2)) for _ in range(2))
    state = source.state_dict()
    old = {key.replace("0.0.", "0.linear_1.").replace("0.3.", "0.linear_2."): value for key, value in state.items()}
    assert old.keys() != state.keys()
    assert not fit_weights(model, Weights(old, "file:vit.pth"), heads=("1",), name="vit", allow_new_head=False)
    assert same(model.state_dict(), state)
