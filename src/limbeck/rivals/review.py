"""Knowledge review (ReviewKD): deeper student features help to match the teacher's shallower ones."""

from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.distributed import collectives
from limbeck.errors import UserError
from limbeck.features.taps import Captured
from limbeck.losses.inputs import at_least_float32
from limbeck.rivals.maps import BatchNorm2d, as_map
from limbeck.terms import Loss, mean_of_rows


@final
class Fusion(nn.Module):
    """Attention based fusion (ABF): one level of the student, mixed with what came up from the levels below it.

    The student's map is brought to the common width by a 1x1 convolution; the deeper map is enlarged to its size; a
    1x1 convolution of both gives two attention maps between 0 and 1, and the weighted sum of the two is the fused map.
    A 3x3 convolution takes it to the teacher's width. Both convolutions have a batch norm behind them.

    Args:
        d_s: Width of the student's map.
        width: Common width.
        d_t: Width of the teacher's map.
        fuse: Whether there is a deeper map; False for the deepest level.
    """

    def __init__(self, d_s: int, width: int, d_t: int, *, fuse: bool) -> None:
        super().__init__()
        reduce, expand = nn.Conv2d(d_s, width, 1, bias=False), nn.Conv2d(width, d_t, 3, padding=1, bias=False)
        for convolution in (reduce, expand):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
        self.reduce = nn.Sequential(reduce, BatchNorm2d(width))
        self.attention = nn.Conv2d(2 * width, 2, 1) if fuse else None
        self.expand = nn.Sequential(expand, BatchNorm2d(d_t))

    def forward(
        self, x: Float[Tensor, "n d_s h w"], deeper: Float[Tensor, "n width i j"] | None, size: tuple[int, int]
    ) -> tuple[Float[Tensor, "n d_t k l"], Float[Tensor, "n width k l"]]:
        """The map to compare with the teacher's, and the fused one for the level above, both of the given size."""
        fused = self.reduce(x)
        if self.attention is not None:
            assert deeper is not None
            deeper = F.interpolate(deeper, fused.shape[2:], mode="nearest")
            weights = torch.sigmoid(self.attention(torch.cat([fused, deeper], 1)))
            fused = weights[:, :1] * fused + weights[:, 1:] * deeper
        if fused.shape[2:] != size:
            fused = F.interpolate(fused, size, mode="nearest")
        return self.expand(fused), fused


@final
class ReviewTerm(nn.Module):
    """Knowledge review: each teacher level is matched by the student's same level fused with all its deeper ones.

    From the deepest level up, with ABF the :class:`Fusion` of level l::

        (y_l, f_l) = ABF_l( x_l, f_{l+1} )                  the deepest has no f_{l+1}
        loss       = sum_l loss( y_l, t_l )

    Rewards a student in which the shallow features together with the deep ones hold what the teacher has at a level,
    so the deep ones also learn from the teacher's shallow knowledge. What it ignores, and how it scales with N and D,
    is the business of ``loss``; of the number of levels it is a sum.

    Across processes the batch norms have the statistics of the global batch, and the losses of the processes are
    averaged by their numbers of images: exactly the loss of the global batch where ``loss`` is a mean over images.

    Args:
        student_taps: Taps of the student, shallow to deep: maps ``(n, c, h, w)``, or vectors, which count as maps of
            one position. The published code has the end of each stage and the pooled feature; the teacher's stages
            before their last ReLU.
        teacher_taps: As many of the teacher. A level is matched at the teacher's size.
        d_s: Width of each student tap.
        d_t: Width of each teacher tap.
        loss: Loss of two maps of one shape that is a mean over images; the paper's is the hierarchical context loss.
        width: Common width in which levels are fused; by default that of the deepest student tap, 512 at most, as in
            the CIFAR-100 code.

    Raises:
        UserError: If the lists are empty or differ in length, or a width is below 1; on a call, if a feature is no map
            or vector of its width.

    Deviates from: the published code in batch norms without running statistics, which matter only where a term is
        evaluated; there the batch's are used, as in :mod:`limbeck.norms`.

    References:
        P. Chen, S. Liu, H. Zhao, J. Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021, section 3 and figure 3
        (ABF); layers, initial values and sizes are from the code (dvlab-research/ReviewKD), whose weight rises from 0
        over the first epochs (20 on CIFAR-100), which is the business of the weights here.

    Example:
        >>> from limbeck import losses
        >>> term = ReviewTerm(["a", "b"], ["c", "d"], d_s=[4, 8], d_t=[6, 10], loss=losses.mean_squared_error)
        >>> student = Captured(torch.zeros(8), {"a": torch.randn(8, 4, 4, 4), "b": torch.randn(8, 8)})
        >>> teacher = Captured(torch.zeros(8), {"c": torch.randn(8, 6, 4, 4), "d": torch.randn(8, 10)})
        >>> term(student, teacher).ndim
        0
    """

    readings: dict[str, Tensor]

    def __init__(
        self,
        student_taps: Sequence[str],
        teacher_taps: Sequence[str],
        *,
        d_s: Sequence[int],
        d_t: Sequence[int],
        loss: Loss,
        width: int | None = None,
    ) -> None:
        super().__init__()
        counts = [len(student_taps), len(teacher_taps), len(d_s), len(d_t)]
        if len(set(counts)) > 1 or not student_taps:
            raise UserError(f"ReviewTerm: got {counts} student taps, teacher taps, d_s and d_t; expected equally many")
        if min(*d_s, *d_t, width if width is not None else 1) < 1:
            raise UserError(f"ReviewTerm: widths are {[*d_s]}, {[*d_t]} and width {width}; expected at least 1")
        self.student_taps = tuple(student_taps)
        self.teacher_taps = tuple(teacher_taps)
        self.d_s = tuple(d_s)
        self.d_t = tuple(d_t)
        self.loss = loss
        common = width if width is not None else min(512, d_s[-1])
        deepest = len(self.d_s) - 1
        self.fusions = nn.ModuleList(
            Fusion(s, common, t, fuse=level < deepest) for level, (s, t) in enumerate(zip(d_s, d_t, strict=True))
        )
        self.readings = {}

    def forward(self, student: Captured, teacher: Captured) -> Float[Tensor, ""]:
        """The loss of one batch; see the class. The readings are the losses of the levels, the shallowest first."""
        values: list[Tensor] = []
        fused: Tensor | None = None
        for level in reversed(range(len(self.fusions))):
            tap_s, tap_t = self.student_taps[level], self.teacher_taps[level]
            x_s = as_map("ReviewTerm", tap_s, student.features[tap_s], self.d_s[level])
            x_t = as_map("ReviewTerm", tap_t, teacher.features[tap_t], self.d_t[level])
            y, fused = self.fusions[level](x_s, fused, (x_t.shape[2], x_t.shape[3]))
            with torch.autocast(y.device.type, enabled=False):
                value = mean_of_rows(self.loss, at_least_float32(y), at_least_float32(x_t))
                values.insert(0, collectives.global_mean(value, len(y)))
        self.readings = {f"level{level}": value.detach() for level, value in enumerate(values, start=1)}
        return torch.stack(values).sum()

    def extra_repr(self) -> str:
        """The taps, for ``print``."""
        return ", ".join(f"{s} -> {t}" for s, t in zip(self.student_taps, self.teacher_taps, strict=True))
