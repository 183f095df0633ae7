"""Which number format and memory layout suit this machine: a rule, so that equal runs get equal settings."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from limbeck.distiller import Distiller, evaluating

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SMALL = 5e8  # floating point operations of one forward pass below which calls, not arithmetic, cost the time


@dataclass(frozen=True)
class Settings:
    """Chosen settings, by the names that a recipe uses, and the reason in words.

    Attributes:
        precision: A name in ``PRECISIONS``.
        memory_format: "contiguous" or "channels_last".
        single_thread: Whether operations are too small to be worth splitting over cores.
        reason: Why, for the log.
    """

    precision: str
    memory_format: str
    single_thread: bool
    reason: str


def choose(distiller: Distiller, batch: Any, *, precision: str, memory_format: str, device: torch.device) -> Settings:
    """Settle what a recipe leaves on ``"auto"``.

    bf16 where the device multiplies it natively, and channels-last; but float32 in the ordinary layout and one thread
    on a CPU for models so small that conversions and hand-overs cost more than they save. A rule on the device and on
    the counted operations rather than a timing: a timing differs from run to run, and then so would the results of
    equal recipes.

    Args:
        distiller: Student, teacher and terms; not changed.
        batch: A typical batch, on the device.
        precision: "auto" or a name in ``PRECISIONS``.
        memory_format: "auto", "contiguous" or "channels_last".
        device: Where training will run.
    """
    native = bf16_is_native(device)
    chosen, layout = ("bf16" if native else "float32"), "channels_last"
    why = f"bf16 is {'' if native else 'not '}native"
    small = False
    if device.type == "cpu":
        flops = _forward_flops(distiller, batch)
        small = flops < SMALL
        if small:
            chosen, layout, why = "float32", "contiguous", "the models are small"
        why += f", {flops / 1e9:.2g} GFLOP forward a batch"
    forced = [name for name in (precision, memory_format) if name != "auto"]
    if forced:
        why += f"; {' and '.join(forced)} as the recipe says"
    return Settings(
        precision if precision != "auto" else chosen,
        memory_format if memory_format != "auto" else layout,
        small,
        why,
    )


def bf16_is_native(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware; elsewhere it is emulated and slow."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())  # pyright: ignore[reportPrivateUsage]
    return False


def apply_settings(module: nn.Module, settings: Settings, device: torch.device) -> None:
    """Lay out the weights, and choose the form of attention that is quick here; no weight and no name changes.

    timm's blocks call the fused attention, whose bf16 backward is slow on CPUs: written out, the step of a ViT of width
    96 on 64 tokens took 0.53 of the time (AMD EPYC, one thread, torch 2.15). In float32 the fused form is quicker.
    """
    if settings.memory_format == "channels_last":
        module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if device.type == "cpu" and settings.precision == "bf16":
        for part in module.modules():
            if hasattr(part, "fused_attn"):
                setattr(part, "fused_attn", False)  # noqa: B010  (timm declares no type for it)


def _forward_flops(distiller: Distiller, batch: Any) -> int:
    with evaluating(distiller), FlopCounterMode(display=False) as counter:
        distiller.capture(batch)
    return int(counter.get_total_flops())
