"""What a probe reads of a projector alone: its matrix, its kind, its spectrum."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from limbeck.diagnostics.spectrum import (
    condition,
    effective_rank,
    local_jacobians,
    participation_ratio,
    share_below,
    share_small,
    singular_values,
    stable_rank,
)
from limbeck.norms.roots import widest
from limbeck.projectors import Ensemble, Ridge

SPECTRUM_SECONDS = 2e-10  # for both spectra of W, times the square of its narrow side and its wide one; one CPU core
VALUES = 256  # singular values of a spectrum that are written
JACOBIANS = 8  # images at which a projector that is not linear is linearized, and
JACOBIAN_ELEMENTS = 2**24  # the most numbers that their Jacobians have together

Record = dict[str, Any]


def matrix(projector: nn.Module) -> Tensor | None:
    """W of a linear projector, ``(d_s, d_t)``; None of any other, and of the identity, which has none."""
    if isinstance(projector, (nn.Linear, Ridge)):
        return projector.weight.detach().T
    if isinstance(projector, nn.Sequential) and len(projector) > 0:
        factors = [part for part in projector if isinstance(part, nn.Linear)]
        if len(factors) == len(projector):
            first, *others = (factor.weight.detach().T for factor in factors)
            for other in others:
                first = first @ other
            return first
    return None


def learned_weight(projector: nn.Module) -> nn.Parameter | None:
    """The parameter that is W, where there is one: of a plain linear layer."""
    if isinstance(projector, nn.Linear) and not parametrize.is_parametrized(projector):
        weight = projector.get_parameter("weight")
        return weight if weight.requires_grad else None
    return None


def decay_of(optimizer: Optimizer | None, weight: nn.Parameter) -> float | None:
    """The weight decay of a parameter under SGD; None under any other optimizer, or none."""
    if not isinstance(optimizer, torch.optim.SGD):
        return None
    groups = [group for group in optimizer.param_groups if any(p is weight for p in group["params"])]
    return float(groups[0]["weight_decay"]) if groups else None


def kind(projector: nn.Module) -> str:
    """A projector in a word."""
    if isinstance(projector, nn.Linear):
        return "orthogonal" if parametrize.is_parametrized(projector) else "linear"
    if isinstance(projector, nn.Sequential):
        return "low_rank" if matrix(projector) is not None else "mlp"
    names = {nn.Identity: "identity", Ridge: "ridge", Ensemble: "ensemble"}
    return names.get(type(projector), type(projector).__name__)


def record_spectrum(s: Tensor, initial: Tensor | None) -> Record:
    """Singular values, the evenly spaced ones of a long spectrum, and what they amount to."""
    index = sorted({round(at) for at in torch.linspace(0, len(s) - 1, min(len(s), VALUES)).tolist()})
    record: Record = {
        "values": s[index],
        "index": index,
        "count": len(s),
        "below_tenth": share_small(s),
        "stable_rank": stable_rank(s),
        "effective_rank": effective_rank(s),
        "participation_ratio": participation_ratio(s),
        "condition": condition(s),
        "norm": torch.linalg.vector_norm(s),
    }
    return record | ({"below_initial": share_below(s, initial)} if initial is not None else {})


def quick_singular_values(w: Tensor) -> Tensor:
    """Those of :func:`singular_values`, from the eigenvalues of the smaller Gram matrix in float64.

    Half of the time at 512 x 2048 (29 ms of one thread, not 63), a fifth at 2048 x 3024 (0.7 s, not 3.9). What is below
    about 1e-6 of the greatest cannot be told from 0 so, and is 0: float32 weights are not rounded more finely.
    """
    if widest(w.device) != torch.float64:
        return singular_values(w)
    wide = w.double() if w.shape[0] <= w.shape[1] else w.double().T
    squares = torch.linalg.eigvalsh(wide @ wide.T).flip(0)
    bound = len(squares) * torch.finfo(squares.dtype).eps * squares[0]
    return torch.where(squares > bound, squares, 0).sqrt().to(torch.promote_types(w.dtype, torch.float32))


def seconds_of_spectra(projector: nn.Module) -> float:
    """About what the singular values of a projector take; 0 where it is not linear, and has others."""
    w = matrix(projector)
    return SPECTRUM_SECONDS * min(w.shape) ** 2 * max(w.shape) if w is not None else 0.0


def jacobians(projector: nn.Module, x: Tensor, width: int) -> list[Tensor]:
    """The linear maps, to so many channels, that a projector is close to some of the rows."""
    count = max(1, min(JACOBIANS, JACOBIAN_ELEMENTS // (x.shape[-1] * width), len(x)))
    rows = x[torch.linspace(0, len(x) - 1, count).round().long()]
    return list(local_jacobians(projector, rows).detach().unbind(0))
