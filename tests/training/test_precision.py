from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from limbeck import models
from limbeck.training import precision as hardware
from limbeck.training.precision import Arithmetic, apply_arithmetic, bf16_is_native, candidates, measure, obvious

CPU = torch.device("cpu")


def settle(precision: str = "auto", memory_format: str = "auto") -> hardware.Arithmetic:
    batch = tiny.Batch(*tiny.images(4))
    distiller = tiny.distiller()
    found = obvious(distiller, batch, precision=precision, memory_format=memory_format, device=CPU)
    return found or measure(distiller, batch, candidates(precision, memory_format, CPU), CPU)


def test_what_the_recipe_says_is_taken() -> None:
    arithmetic = settle("bf16", "channels_last")
    assert (arithmetic.precision, arithmetic.memory_format) == ("bf16", "channels_last")
    assert "as the recipe says" in arithmetic.reason


def test_small_models_stay_in_float32_on_one_thread() -> None:
    arithmetic = settle()
    assert (arithmetic.precision, arithmetic.memory_format, arithmetic.single_thread) == ("float32", "contiguous", True)
    assert "GFLOP" in arithmetic.reason


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16 channels_last"), (False, "float32 channels_last")])
def test_large_models_take_what_is_quickest(monkeypatch: pytest.MonkeyPatch, native: bool, expected: str) -> None:
    monkeypatch.setattr(hardware, "SMALL", 1.0)
    monkeypatch.setattr(hardware, "bf16_is_native", lambda _: native)
    tried = slow_down(monkeypatch, {"float32 contiguous": 5, "float32 channels_last": 4, "bf16 contiguous": 3})
    arithmetic = settle()
    assert arithmetic.name == expected
    assert not arithmetic.single_thread
    assert set(arithmetic.seconds) == set(tried) == {f"{p} {m}" for p, m in product(native)}
    assert "1.00" in arithmetic.reason


def product(native: bool) -> list[tuple[str, str]]:
    return [(p, m) for p in ("float32", *(["bf16"] if native else [])) for m in ("contiguous", "channels_last")]


def slow_down(monkeypatch: pytest.MonkeyPatch, times: dict[str, float]) -> list[str]:
    """The settings of each step that was timed; every step is said to have taken what ``times`` has, or else 1."""
    tried: list[str] = []
    real, now = hardware.apply_arithmetic, hardware.timed

    def apply(module: nn.Module, arithmetic: Arithmetic, device: torch.device) -> None:
        tried.append(arithmetic.name)
        real(module, arithmetic, device)

    def timed(step: Callable[[], None], device: torch.device) -> float:
        now(step, device)  # it does run
        return times.get(tried[-1], 1) * 1e-3 if tried else 1e-6

    monkeypatch.setattr(hardware, "apply_arithmetic", apply)
    monkeypatch.setattr(hardware, "timed", timed)
    return tried


def test_candidates_are_timed_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = slow_down(monkeypatch, {})
    measure(tiny.distiller(), tiny.Batch(*tiny.images(8)), candidates("float32", "auto", CPU), CPU)
    assert tried == ["float32 contiguous", "float32 channels_last"] * (hardware.ROUNDS + 1)


def test_a_step_that_is_too_long_for_the_budget_is_timed_once_and_on_fewer_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows: list[int] = []
    monkeypatch.setattr(hardware, "BUDGET", 0.0)
    distiller = tiny.distiller()
    monkeypatch.setattr(
        type(distiller.task), "student_input", lambda task, batch: rows.append(len(batch[0])) or batch[0]
    )
    measure(distiller, tiny.Batch(*tiny.images(64)), candidates("float32", "auto", CPU), CPU)
    assert rows[0] == 64  # asked how many there are
    assert rows[1:] == [8] * (2 + 2 * 2)  # a look at the cost, the warm-up, and one round


def test_what_does_not_fit_into_memory_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert hardware.timed(full, CPU) == float("inf")
    slow_down(monkeypatch, {"float32 contiguous": float("inf")})
    arithmetic = measure(tiny.distiller(), tiny.Batch(*tiny.images(8)), candidates("float32", "auto", CPU), CPU)
    assert arithmetic.memory_format == "channels_last"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator")])
@pytest.mark.parametrize("place", ["beside", "step_of"])
def test_without_memory_to_measure_the_first_setting_is_taken(
    monkeypatch: pytest.MonkeyPatch, place: str, error: RuntimeError
) -> None:
    def full(*_: object) -> Any:
        raise error

    monkeypatch.setattr(hardware, place, full if place == "beside" else lambda *_: full)
    choice = candidates("float32", "auto", CPU)
    arithmetic = measure(tiny.distiller(), tiny.Batch(*tiny.images(8)), choice, CPU)
    assert arithmetic.name == "float32 contiguous"
    assert (arithmetic.seconds, arithmetic.reason) == ({}, "not measured, for lack of memory")


def test_the_copy_shares_the_teacher_which_gets_its_layout_back() -> None:
    distiller = tiny.distiller(norm=True)
    teacher = distiller.teacher
    assert teacher is not None
    teacher.model.conv1.to(memory_format=torch.channels_last)
    with hardware.trial(distiller, CPU) as subject:
        assert subject.teacher is teacher
        assert subject.student is not distiller.student
        assert subject.clock is not distiller.clock
        hardware.apply_arithmetic(subject, hardware.Arithmetic("float32", "channels_last", False, ""), CPU)
        assert not teacher.model.conv2.weight.is_contiguous()
    assert teacher.model.conv2.weight.is_contiguous()
    assert not teacher.model.conv1.weight.is_contiguous()


def test_measuring_changes_neither_models_nor_randomness() -> None:
    distiller = tiny.distiller(norm=True, dropout=0.5).train()
    before = {name: value.clone() for name, value in distiller.state_dict().items()}
    modes = [module.training for module in distiller.modules()]
    attention = models.build("small/vit-32", num_classes=3, size=8).module
    distiller.student.attention = attention.blocks[0].attn  # not used; measuring sets it, on its copy
    state = torch.get_rng_state()
    choice = candidates("auto", "auto", CPU) + candidates("bf16", "auto", CPU)
    measure(distiller, tiny.Batch(*tiny.images(8)), choice, CPU)
    assert torch.equal(state, torch.get_rng_state())
    assert attention.blocks[0].attn.fused_attn
    del distiller.student.attention
    assert tiny.same_bytes(before, distiller.state_dict())
    assert modes == [module.training for module in distiller.modules()]
    assert all(p.grad is None for p in distiller.parameters())
    assert distiller.student.conv2.weight.is_contiguous()


def test_one_forced_setting_leaves_the_other_to_the_choice() -> None:
    assert (settle("bf16").precision, settle("bf16").memory_format) == ("bf16", "contiguous")
    assert settle(memory_format="channels_last").memory_format == "channels_last"


def test_every_precision_has_a_dtype_and_no_other_device_is_said_to_be_native() -> None:
    assert set(hardware.PRECISIONS) == {"float32", "bf16", "fp16"}
    assert not bf16_is_native(torch.device("meta"))


def test_choosing_changes_neither_models_nor_randomness() -> None:
    distiller = tiny.distiller(norm=True)
    before = {name: value.clone() for name, value in distiller.state_dict().items()}
    state = torch.get_rng_state()
    batch = tiny.Batch(*tiny.images(4))
    obvious(distiller, batch, precision="auto", memory_format="auto", device=CPU)
    measure(distiller, batch, candidates("auto", "auto", CPU), CPU)
    assert torch.equal(state, torch.get_rng_state())
    assert tiny.same_bytes(before, distiller.state_dict())
    assert distiller.student.training


def test_memory_format_moves_convolutions_and_no_value() -> None:
    net = tiny.Net(4)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    apply_arithmetic(net, Arithmetic("float32", "contiguous", False, ""), CPU)
    assert net.conv2.weight.is_contiguous()
    apply_arithmetic(net, Arithmetic("bf16", "channels_last", False, ""), CPU)
    assert net.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert tiny.same_bytes(before, net.state_dict())


def test_attention_is_written_out_for_bf16_on_a_cpu_only() -> None:
    net = models.build("small/vit-32", num_classes=3, size=16).module
    images = torch.rand(2, 3, 16, 16)
    before = net.eval()(images)
    apply_arithmetic(net, Arithmetic("float32", "contiguous", False, ""), CPU)
    assert all(block.attn.fused_attn for block in net.blocks)
    apply_arithmetic(net, Arithmetic("bf16", "contiguous", False, ""), CPU)
    assert not any(block.attn.fused_attn for block in net.blocks)
    torch.testing.assert_close(net(images), before)
