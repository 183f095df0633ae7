"""Terms that tell places with objects from places without."""

from typing import final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from limbeck.distributed import collectives
from limbeck.errors import UserError
from limbeck.features.taps import Captured
from limbeck.terms import FeatureTerm

LEAST = 2  # rows; statistics of one row have no meaning


def touched(target: Float[Tensor, "n m 5"], size: tuple[int, int], stride: int) -> Bool[Tensor, "n m h w"]:
    """Which positions of a map each box touches; none for rows that hold no box.

    Position (i, j) stands for the pixels from ``stride j`` to ``stride (j + 1)`` across, and likewise down. So every
    box touches at least one position of every level that it lies in.

    Args:
        target: Left, top, right, bottom in pixels of the frame, and the class, -1 for none.
        size: Height and width of the map.
        stride: Pixels of the frame for each position.

    Example:
        >>> touched(torch.tensor([[[3.0, 0.0, 5.0, 4.0, 0.0]]]), (1, 3), 4).int().tolist()
        [[[[1, 1, 0]]]]
    """
    left, top, right, bottom, label = (target[:, :, column, None] for column in range(5))
    x, y = (stride * torch.arange(side, device=target.device) for side in (size[1], size[0]))
    across = (x < right) & (x + stride > left) & (label >= 0)  # (n, m, w)
    down = (y < bottom) & (y + stride > top)  # (n, m, h)
    return down[:, :, :, None] & across[:, :, None, :]


@final
class ForegroundTerm(nn.Module):
    """A feature term of maps that treats the places in boxes and those in none as two batches.

    ``(term(places in boxes) + background * term(places in none)) / (1 + background)``. Both go through the same
    projector; each has statistics of its own, so that the channels of objects are normalized by how they vary over
    objects, of which an image of much sky has few places. A part with fewer than two places over all processes counts
    nothing.

    Args:
        term: The feature term; it gets rows ``(k, c)``, so its pools have to take vectors.
        stride: Pixels of the frame for each position of the maps.
        background: Weight of the places in no box, 0 to leave them out.

    Raises:
        UserError: If background is negative or stride below 1; on a call, if there are no boxes in the batch's target
            or a feature is no map.

    References:
        T. Wang, L. Yuan, X. Zhang, J. Feng, "Distilling Object Detectors with Fine-Grained Feature Imitation", CVPR
        2019 (places near objects); J. Guo et al., "Distilling Object Detectors via Decoupled Features", CVPR 2021 (two
        weights).
    """

    readings: dict[str, Tensor]

    def __init__(self, term: FeatureTerm, *, stride: int, background: float = 0.0) -> None:
        super().__init__()
        if background < 0 or stride < 1:
            raise UserError(f"ForegroundTerm: background is {background} and stride {stride}; expected 0 and 1 or more")
        self.term = term
        self.stride = stride
        self.background = background
        self.student_taps = term.student_taps
        self.teacher_taps = term.teacher_taps
        self.readings = {}

    def forward(self, student: Captured, teacher: Captured) -> Float[Tensor, ""]:
        """The loss of one batch; see the class. The readings are those of the places in boxes."""
        x_s, x_t = student.features[self.student_taps[0]], teacher.features[self.teacher_taps[0]]
        target = student.target
        if target is None or target.ndim != 3:
            raise UserError("ForegroundTerm needs boxes, and the batch has none; use limbeck.detection.Detection")
        if x_s.ndim != 4 or x_t.ndim != 4 or x_s.shape[2:] != x_t.shape[2:]:
            raise UserError(
                f"ForegroundTerm: student is {tuple(x_s.shape)} and teacher {tuple(x_t.shape)}; "
                "expected maps of one size"
            )
        inside = touched(target, (x_s.shape[2], x_s.shape[3]), self.stride).any(1)
        chosen = inside.flatten()
        order = chosen.int().argsort(descending=True, stable=True)  # the places in boxes first
        own = torch.stack([chosen.sum(), (~chosen).sum()])
        # One read of the device; whole numbers, since compiled code does not cut by others.
        read: list[int] = torch.cat([own[:1], collectives.sum_across(own)]).tolist()
        front, all_front, all_back = read
        value = self._part(student, teacher, order[:front], all_front)
        self.readings = {**self.term.readings, "foreground": inside.float().mean()}
        if self.background == 0:
            return value
        behind = self._part(student, teacher, order[front:], all_back)
        return (value + self.background * behind) / (1 + self.background)

    def _part(self, student: Captured, teacher: Captured, places: Int64[Tensor, " k"], count: int) -> Tensor:
        """The term of the chosen places as rows; zero, with a gradient that is zero, where there are too few.

        Args:
            student: The student's side.
            teacher: The teacher's.
            places: Numbers of the places.
            count: How many there are over all processes.
        """
        s, t = self.student_taps[0], self.teacher_taps[0]
        if count < LEAST:
            unused = [student.features[s], *self.term.parameters()]
            return torch.stack([value.float().sum() * 0 for value in unused]).sum()
        rows_s, rows_t = (
            x.permute(0, 2, 3, 1).flatten(0, 2)[places] for x in (student.features[s], teacher.features[t])
        )
        return self.term(
            student._replace(features={s: rows_s}),
            teacher._replace(features={t: rows_t}),
        )

    def extra_repr(self) -> str:
        """The arguments, for ``print``."""
        return f"stride={self.stride}, background={self.background:g}"
