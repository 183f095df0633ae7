"""Losses of the logits over all processes: of their rows where the loss is a mean over them, else of all together."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck import losses
from limbeck.distributed import collectives
from limbeck.terms.forms import unwrapped

# Each row's share of these depends on that row alone.
MEAN_OVER_ROWS: frozenset[object] = frozenset(
    {losses.kl_divergence, losses.standardized_kl, losses.decoupled_kl, losses.normalized_kl}
)


class OverAll(NamedTuple):
    """What a loss of the logits gave, of the global batch.

    Attributes:
        loss: The loss.
        agreement: Share of the rows for which both sides put the same class first.
    """

    loss: Float[Tensor, ""]
    agreement: Float[Tensor, ""]


def is_mean_over_rows(loss: object, said: bool | None) -> bool:
    """Whether a loss is a mean over rows: as it was said, or for one of ours as it is known; of others it is not.

    Args:
        loss: The function, which may have arguments bound to it.
        said: What the user says of it, or None.
    """
    return said if said is not None else unwrapped(loss) in MEAN_OVER_ROWS


def over_all(
    loss: Callable[..., Tensor],
    y_s: Float[Tensor, "n *rest"],
    y_t: Float[Tensor, "n *rest"],
    *more: Tensor,
    by_rows: bool,
) -> OverAll:
    """The loss of the rows of all processes, which may be none on some.

    Args:
        loss: Function of the student's logits, the teacher's, and more that has a first dimension of rows.
        y_s: Student logits of this process.
        y_t: Teacher logits.
        more: Labels.
        by_rows: The loss is a mean over rows: each process computes its own, and two numbers cross. Else every process
            gets the rows of all, and computes all of it.
    """
    if not by_rows:
        y_s, y_t, *more_rows = (collectives.gather_rows(side) for side in (y_s, y_t, *more))
        return OverAll(loss(y_s, y_t, *more_rows), _agreement(y_s, y_t))
    both = torch.stack([mean_of_rows(loss, y_s, y_t, *more), _agreement(y_s, y_t)])
    return OverAll(*collectives.global_mean(both, y_s.shape[:-1].numel()).unbind())


def mean_of_rows(loss: Callable[..., Tensor], z_s: Tensor, *others: Tensor) -> Float[Tensor, ""]:
    """A loss that is a mean over the rows of this process, for :func:`limbeck.distributed.collectives.global_mean`.

    Without rows, as one of several processes may be, it is the sum over none: 0, which reaches every parameter, as DDP
    wants it.
    """
    return loss(z_s, *others) if z_s.numel() or collectives.world_size() == 1 else z_s.sum()


def _agreement(y_s: Tensor, y_t: Tensor) -> Tensor:
    return (y_s.detach().argmax(-1) == y_t.argmax(-1)).to(y_s.dtype).mean()
