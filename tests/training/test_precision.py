from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from limbeck import models
from limbeck.training import precision as hardware
from limbeck.training.precision import (
    Arithmetic,
    Measurement,
    apply_arithmetic,
    bf16_is_native,
    candidates,
    chosen,
    in_words,
    measure,
    obvious,
)

CPU = torch.device("cpu")
LONG = 10**9  # steps of a run whose share for timing never ends


def settle(precision: str = "auto", memory_format: str = "auto") -> Arithmetic:
    batch = tiny.Batch(*tiny.images(4))
    distiller = tiny.distiller()
    found = obvious(distiller, batch, precision=precision, memory_format=memory_format, device=CPU)
    if found is not None:
        return found
    choice = candidates(precision, memory_format, CPU)
    measured = measure(distiller, batch, choice, CPU, steps=LONG)
    assert measured is not None
    return chosen(choice, measured.seconds, in_words(measured.seconds))


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


def slow_down(monkeypatch: pytest.MonkeyPatch, times: dict[str, float | list[float]]) -> list[str]:
    """The settings of each step that was timed; every step is said to have taken what ``times`` has, or else 1 s.

    A list is taken one by one, first the warm-up, and its last time again and again. A negative time is of a step that
    waited for a core. A clock that stands still leaves the budget alone.
    """
    tried: list[str] = []
    delay = [0.0]
    real, now = hardware.apply_arithmetic, hardware.timed

    def apply(module: nn.Module, arithmetic: Arithmetic, device: torch.device) -> None:
        tried.append(arithmetic.name)
        real(module, arithmetic, device)

    def timed(step: Callable[[], None], device: torch.device) -> float:
        now(step, device)  # it does run
        found = times.get(tried[-1], 1.0)
        seconds = found[min(tried.count(tried[-1]), len(found)) - 1] if isinstance(found, list) else found
        delay[0] += 0.5 * abs(seconds) if seconds < 0 else 0.0
        return abs(seconds)

    monkeypatch.setattr(hardware, "apply_arithmetic", apply)
    monkeypatch.setattr(hardware, "timed", timed)
    monkeypatch.setattr(hardware, "run_delay", lambda: delay[0])
    return tried


def measured(times: dict[str, float | list[float]], monkeypatch: pytest.MonkeyPatch) -> tuple[Measurement, list[str]]:
    """What is found of float32's two layouts whose steps take these times, and what was timed."""
    tried = slow_down(monkeypatch, times)
    found = measure(tiny.distiller(), tiny.Batch(*tiny.images(8)), candidates("float32", "auto", CPU), CPU, steps=LONG)
    assert found is not None
    return found, tried


A, B = "float32 contiguous", "float32 channels_last"


@pytest.mark.parametrize(
    ("times", "seconds", "is_sure", "rounds"),
    [
        ({A: 1.0, B: 2.0}, (1.0, 2.0), True, [2, 2]),
        ({A: [9.0, 1.0, 1.5, 1.01], B: 2.0}, (1.0, 2.0), True, [3, 2]),  # confirmed by the third
        ({A: [9.0, -4.9, -4.9, 1.0], B: 1.3}, (1.0, 1.3), True, [4, 2]),  # the load that was there at the start
        ({A: -1.0, B: -1.3}, (1.0, 1.3), False, [8, 5]),  # busy all the time: five rounds of five decide
        ({A: [1.0, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7], B: 1.0}, (1.0, 1.0), False, [8, 2]),
    ],
    ids=["quiet", "one disturbance", "disturbed at first", "busy", "never confirmed"],
)
def test_candidates_take_turns_until_each_is_confirmed_or_out(
    monkeypatch: pytest.MonkeyPatch,
    times: dict[str, float | list[float]],
    seconds: tuple[float, float],
    is_sure: bool,
    rounds: list[int],
) -> None:
    found, tried = measured(times, monkeypatch)
    assert tuple(found.seconds.values()) == seconds
    assert found.is_sure is is_sure
    assert [tried.count(name) - 1 for name in (A, B)] == rounds
    assert tried[:4] == [A, B] * 2


def test_the_share_of_the_run_that_timing_may_take_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 3))  # each look at it is 3 s later
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: float(next(clock)))
    tried = slow_down(monkeypatch, {A: -1.0, B: -1.0})
    measure(tiny.distiller(), tiny.Batch(*tiny.images(8)), candidates("float32", "auto", CPU), CPU, steps=200)
    assert tried.count(A) == 2  # the warm-up and one round, since 2% of 200 s had passed


def test_steps_are_timed_on_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    distiller = tiny.distiller()
    monkeypatch.setattr(
        type(distiller.task), "student_input", lambda task, batch: rows.append(len(batch[0])) or batch[0]
    )
    measure(distiller, tiny.Batch(*tiny.images(64)), candidates("float32", "contiguous", CPU), CPU, steps=LONG)
    assert set(rows) == {64}


def test_the_system_says_how_long_threads_waited_for_a_core() -> None:
    assert 0 <= hardware.run_delay() <= hardware.run_delay()


def test_what_does_not_fit_into_memory_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert hardware.timed(full, CPU) == float("inf")
    slow_down(monkeypatch, {"float32 contiguous": float("inf")})
    choice = candidates("float32", "auto", CPU)
    found = measure(tiny.distiller(), tiny.Batch(*tiny.images(8)), choice, CPU, steps=LONG)
    assert found is not None
    assert list(found.seconds) == ["float32 channels_last"]
    assert found.is_sure


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator")])
@pytest.mark.parametrize("place", ["beside", "step_of"])
def test_without_memory_to_measure_a_rule_decides(
    monkeypatch: pytest.MonkeyPatch, place: str, error: RuntimeError
) -> None:
    def full(*_: object) -> Any:
        raise error

    monkeypatch.setattr(hardware, place, full if place == "beside" else lambda *_: full)
    choice = candidates("float32", "auto", CPU)
    assert measure(tiny.distiller(), tiny.Batch(*tiny.images(8)), choice, CPU, steps=LONG) is None
    assert hardware.by_rule(choice, CPU, "no memory").name == "float32 contiguous"


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
    measure(distiller, tiny.Batch(*tiny.images(8)), choice, CPU, steps=LONG)
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
    measure(distiller, batch, candidates("auto", "auto", CPU), CPU, steps=LONG)
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
