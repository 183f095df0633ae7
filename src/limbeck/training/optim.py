"""Optimizers over everything that a distiller trains, learning rates over epochs, and two guards."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from limbeck.distiller import Distiller
from limbeck.distributed import sharding
from limbeck.errors import UserError

_DRAWS = 20  # a layer that is dropped in half of the steps is missed by all of them once in a million

Rate = Callable[[float], float]
"""Factor on the learning rate as a function of the epochs done, a fraction at every step."""


def sgd(
    distiller: Distiller,
    *,
    lr: float = 0.05,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    scaled: bool = False,
) -> Optimizer:
    """SGD over everything trainable; the defaults are those of the CIFAR distillation literature (RepDistiller).

    Args:
        distiller: On the device where it is trained.
        lr: Learning rate.
        momentum: Momentum.
        weight_decay: Weight decay, of all parameters.
        scaled: Whether the loss is scaled (float16). The fused kernel is then left aside: in a step that the scale
            makes overflow it writes into the momentum although the step is skipped (torch 2.15).
    """
    parameters = list(distiller.trainable_parameters().values())
    in_shares = any(sharding.is_sharded(parameter) for parameter in parameters)  # for which torch 2.15 has no kernel
    fused = None if scaled or in_shares else _can_be_fused(parameters)
    return torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=fused)


def adamw(distiller: Distiller, *, lr: float = 5e-4, weight_decay: float = 0.05) -> Optimizer:
    """AdamW over everything trainable, without decay for vectors (biases, norms), as in DeiT; projectors do decay."""
    parameters = distiller.trainable_parameters()
    exempt = [
        p for name, p in parameters.items() if p.ndim < 2 or name.endswith(("pos_embed", "cls_token", "dist_token"))
    ]
    ids = {id(p) for p in exempt}
    decayed = [p for p in parameters.values() if id(p) not in ids]
    return torch.optim.AdamW(
        [{"params": decayed}, {"params": exempt, "weight_decay": 0.0}],
        lr=lr,
        weight_decay=weight_decay,
        fused=_can_be_fused(parameters.values()),
    )


def _can_be_fused(parameters: Iterable[nn.Parameter]) -> bool | None:
    """True asks for one kernel for all parameters; None leaves the form to torch.

    On a CPU that kernel takes 0.3 to 0.5 of the time of the loop over parameters, 1.5% of a step of ResNet18
    (docs/log.md); it rounds differently from the loop.
    """
    return True if all(p.device.type in ("cpu", "cuda") for p in parameters) else None


def cosine_decay(epochs: float, *, warmup: float = 0.0, floor: float = 0.0) -> Rate:
    """Linear warm-up over ``warmup`` epochs, then half a cosine from 1 to ``floor``.

    Example:
        >>> rate = cosine_decay(10, warmup=2)
        >>> [round(rate(epoch), 3) for epoch in (0, 1, 2, 6, 10)]
        [0.01, 0.505, 1.0, 0.5, 0.0]
    """

    def rate(done: float) -> float:
        share = min(max((done - warmup) / max(epochs - warmup, 1e-9), 0.0), 1.0)
        return _warm(done, warmup) * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share)))

    return rate


def step_decay(milestones: Iterable[float], *, gamma: float = 0.1, warmup: float = 0.0) -> Rate:
    """Times ``gamma`` at each milestone, in epochs, after a linear warm-up.

    Example:
        >>> rate = step_decay([150, 180, 210])
        >>> [round(rate(epoch), 4) for epoch in (0, 149, 150, 200)]
        [1.0, 1.0, 0.1, 0.01]
    """
    edges = sorted(milestones)
    return lambda done: _warm(done, warmup) * gamma ** sum(done >= edge for edge in edges)


def _warm(done: float, warmup: float) -> float:
    return 0.01 + 0.99 * min(done / warmup, 1.0) if warmup > 0 else 1.0


def check_optimizer(distiller: Distiller, optimizer: Optimizer) -> None:
    """Refuse an optimizer that forgets a trainable parameter, a projector's for instance."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, p in distiller.trainable_parameters().items() if id(p) not in held]
    if missing:
        raise UserError(f"not in the optimizer: {named(missing)}; build it over distiller.trainable_parameters()")


def check_scaled(optimizer: Optimizer) -> None:
    """Refuse, where the loss is scaled, torch's fused SGD, whose momentum takes up steps that are skipped."""
    fused = any(group.get("fused") for group in optimizer.param_groups)
    if isinstance(optimizer, torch.optim.SGD) and fused:
        raise UserError(
            "fused SGD does not skip steps that overflow in float16; build it with fused=False, or use bf16"
        )


def check_finite(distiller: Distiller) -> None:
    """Refuse parameters that are not finite: a finite loss can have a gradient that is not."""
    parameters = distiller.trainable_parameters()
    broken = [name for name, fine in zip(parameters, sharding.finite(parameters.values()), strict=True) if not fine]
    if broken:
        raise UserError(
            f"not finite after the last step: {named(broken)}; the last checkpoint is from before it. "
            "Lower the learning rate, clip the gradients, or try float32"
        )


def check_gradients(distiller: Distiller, again: Callable[[], Tensor] | None = None) -> None:
    """Refuse, after a backward pass, parameters that nothing trains.

    Args:
        distiller: After its first backward pass.
        again: Computes the loss anew. Parameters that a few further losses depend on are in layers that training drops
            at random (LayerDrop), and are not refused.
    """
    missing = {name: p for name, p in distiller.trainable_parameters().items() if p.grad is None}
    if missing and again is not None:
        buffers = {name: buffer.clone() for name, buffer in distiller.named_buffers()}
        for _ in range(_DRAWS):
            found: Any = torch.autograd.grad(again(), list(missing.values()), allow_unused=True)
            missing = {name: p for (name, p), g in zip(missing.items(), found, strict=True) if g is None}
            if not missing:
                break
        with torch.no_grad():
            for name, buffer in distiller.named_buffers():
                buffer.copy_(buffers[name])
    if missing:
        raise UserError(
            f"no gradient reaches {named(list(missing))}; freeze what shall not train, or build a student without it"
        )


def named(names: Sequence[str]) -> str:
    """A few of the names in words."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
