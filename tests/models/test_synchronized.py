"""On one process; ``test_processes`` has whole trainings on several."""

import copy

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

import tiny
from limbeck import models
from limbeck.assembly.build import build_student
from limbeck.errors import UserError
from limbeck.models.synchronized import SyncBatchNorm
from limbeck.recipes.recipe import Recipe


def test_names_weights_and_results_stay() -> None:
    torch.manual_seed(0)
    plain = tiny.Net(4, norm=True)
    replaced = models.synchronized(copy.deepcopy(plain))
    assert type(replaced.get_submodule("norm")) is SyncBatchNorm
    assert tiny.same_bytes(replaced.state_dict(), plain.state_dict())
    x, _ = tiny.images(8)
    for _ in range(2):
        assert torch.equal(replaced(x), plain(x))
    assert tiny.same_bytes(replaced.state_dict(), plain.state_dict())  # the running statistics, too
    assert torch.equal(replaced.eval()(x), plain.eval()(x))
    tiny.Net(4, norm=True).load_state_dict(replaced.state_dict(), strict=True)


def test_parameters_are_shared_and_frozen_ones_stay_frozen() -> None:
    norm = nn.BatchNorm1d(3)
    norm.weight.requires_grad_(False)
    replaced = models.synchronized(norm)
    assert isinstance(replaced, SyncBatchNorm)
    assert replaced.weight is norm.weight
    assert not replaced.weight.requires_grad
    assert replaced.running_var is norm.running_var


def test_what_timm_joins_to_a_norm_follows_it() -> None:
    layer = nn.Sequential(BatchNormAct2d(3, act_layer=nn.SiLU)).train()
    x = torch.randn(4, 3, 2, 2)
    expected = copy.deepcopy(layer)(x)
    replaced = models.synchronized(layer)
    assert [name for name, _ in replaced.named_modules()] == ["", "0", "0.drop", "0.act"]
    assert torch.equal(replaced(x), expected)


def test_once_more_changes_nothing() -> None:
    model = models.synchronized(tiny.Net(4, norm=True))
    norm = model.get_submodule("norm")
    assert models.synchronized(model).get_submodule("norm") is norm


def test_an_unknown_kind_is_named() -> None:
    class Strange(nn.BatchNorm2d):
        pass

    with pytest.raises(UserError, match=r'"1" is a Strange, which cannot be synchronized'):
        models.synchronized(nn.Sequential(nn.Conv2d(3, 4, 1), Strange(4)))


def test_a_recipe_asks_for_it_where_there_are_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process has the global batch anyway, and keeps torch's own kernel."""
    from limbeck.assembly.build import build_data
    from limbeck.distributed import collectives

    recipe = Recipe(data="digits", student="cifar/resnet8", method="alone", sync_batch_norm=True)
    data = build_data(recipe)

    def count() -> int:
        return sum(isinstance(module, SyncBatchNorm) for module in build_student(recipe, data, None).module.modules())

    assert count() == 0
    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    assert count() > 5
