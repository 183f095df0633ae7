"""How processes meet; ``tests/test_torchrun.py`` has real ones that are started again."""

import pytest
import torch

from limbeck.distributed.processes import meet
from limbeck.errors import UserError
from limbeck.recipes.recipe import Recipe, fields_of
from limbeck.recipes.roles import RESUMABLE


def test_alone_there_is_nobody_to_meet() -> None:
    assert meet(on_cpu=True, timeout=5) == torch.device("cpu")
    assert not torch.distributed.is_initialized()


def test_several_machines_with_one_store_for_all_starts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each counts its own starts, so their number tells nothing apart."""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    with pytest.raises(UserError, match="set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1") as raised:
        meet(on_cpu=True, timeout=5)
    assert "\n" not in str(raised.value)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")  # what that variable comes to
    assert meet(on_cpu=True, timeout=5) == torch.device("cpu")


def test_a_run_may_go_on_with_another_patience() -> None:
    assert "process_timeout" in fields_of(*RESUMABLE)
    with pytest.raises(UserError, match="process_timeout"):
        Recipe(data="digits", student="small/cnn-2", method="alone", process_timeout=0)
