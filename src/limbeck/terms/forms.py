"""The forms in which a feature term can compute its loss, and which of them suits a batch."""

import enum
import functools
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from limbeck import losses, norms, projectors
from limbeck.distributed import collectives
from limbeck.errors import UserError
from limbeck.terms.chunked import Combine


class Form(enum.Enum):
    """How a term computes its loss; the value and the gradient are the same."""

    DIRECT = "direct"  # project all rows, normalize, compare
    MOMENTS = "moments"  # from covariances, without the projected features
    CHUNKED = "chunked"  # block of rows by block of rows


# Which losses are a mean, a sum or a LogSum over rows, so that they can be computed in blocks.
COMBINE: dict[object, Combine] = {
    losses.squared_error: Combine.SUM,
    losses.mean_squared_error: Combine.MEAN,
    losses.l1: Combine.MEAN,
    losses.smooth_l1: Combine.MEAN,
    losses.cosine: Combine.MEAN,
    losses.log_sum: Combine.LOG_SUM,
}
ROW_BY_ROW = (nn.Identity, norms.L2, norms.LayerNorm, norms.GroupNorm)

# From benchmarks/loss_cost.py: rows for each student channel from which moments are quicker than the direct form, and
# elements of the projected feature from which blocks of it are.
MOMENTS_ROWS = 2
CHUNKED_ELEMENTS = 2**22


class LastLinear(NamedTuple):
    """A projector as its last linear layer and what comes in front of it."""

    body: nn.Module
    linear: nn.Linear


def last_linear(projector: nn.Module) -> LastLinear | None:
    """The last layer, where the projector is or ends in a linear one: what moments and blocks need to know of it."""
    if isinstance(projector, nn.Linear):
        return LastLinear(nn.Identity(), projector)
    if isinstance(projector, nn.Sequential) and len(projector) > 0:
        last = projector[-1]
        return LastLinear(projector[:-1], last) if isinstance(last, nn.Linear) else None
    return None


def input_width(projector: nn.Module) -> int | None:
    """How many channels a projector reads, where its first layer says so."""
    if isinstance(projector, nn.Sequential) and len(projector) > 0:
        return input_width(projector[0])
    if isinstance(projector, projectors.Ensemble):
        return input_width(projector.members[0])
    width = getattr(projector, "in_features", None)
    return width if isinstance(width, int) else None


def refuse_dead_bias(projector: nn.Module) -> None:
    """Refuse a projector whose last layer has a bias that a batch norm behind it takes off again."""
    last = [module for module in projector.modules() if isinstance(module, nn.Linear)][-1:]
    if last and last[0].bias is not None and list(projector.modules())[-1] is last[0]:  # pyright: ignore[reportUnnecessaryComparison]
        raise UserError("the projector's last bias is cancelled by the batch norm behind it; build it with bias=False")


def choose(
    x: Tensor,
    y: Tensor,
    last: LastLinear | None,
    *,
    loss: object,
    student_norm: nn.Module,
    teacher_norm: nn.Module,
    inverted: bool,
    form: Form | None,
    name: Callable[[], str],
) -> Form:
    """The quickest form that applies; on several processes without a look at the rows, which may differ there.

    Args:
        x: What goes through the projector.
        y: The other side.
        last: The projector's last layer, where it is a linear one.
        loss: The elementwise loss; None where the loss is one of the correlation.
        student_norm: Norm of the student's side.
        teacher_norm: Norm of the teacher's side.
        inverted: Whether the projector is on the teacher's side.
        form: The form that is insisted on.
        name: Says what the term is, for the message.

    Raises:
        UserError: If the form that is insisted on does not apply.
    """
    both = (student_norm, teacher_norm)
    named = unwrapped(loss)
    by_moments = last is not None and are_batch(*both) and named in (None, losses.mean_squared_error)
    in_blocks = (
        last is not None
        and not inverted
        and not y.requires_grad
        and named in COMBINE
        and all(isinstance(norm, (norms.BatchNorm, *ROW_BY_ROW)) for norm in both)
    )
    if form is not None:
        if not {Form.DIRECT: True, Form.MOMENTS: by_moments, Form.CHUNKED: in_blocks}[form]:
            raise UserError(f"the {form.value} form does not apply to {name()}")
        return form
    rows, alone = x.shape[:-1].numel(), collectives.world_size() == 1
    if by_moments and (not alone or (last is not None and rows > MOMENTS_ROWS * last.linear.in_features)):
        return Form.MOMENTS
    if in_blocks and (not alone or rows * y.shape[-1] > CHUNKED_ELEMENTS):
        return Form.CHUNKED
    return Form.DIRECT


def are_batch(*modules: nn.Module) -> bool:
    """Whether all of these are batch norms."""
    return all(isinstance(module, norms.BatchNorm) for module in modules)


def unwrapped(function: object) -> object:
    """A function without the arguments that were bound to it."""
    return function.func if isinstance(function, functools.partial) else function  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
