"""Hints (FitNets): match one map of the student, through a regressor that sees its positions, to one of the teacher."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck import losses
from limbeck.distributed import collectives
from limbeck.errors import UserError
from limbeck.features import pooling
from limbeck.features.taps import Captured
from limbeck.losses.inputs import at_least_float32
from limbeck.rivals.maps import BatchNorm2d, to_common_size
from limbeck.terms import Loss, mean_of_rows


def regressor(d_s: int, d_t: int, *, size_s: Sequence[int], size_t: Sequence[int]) -> nn.Sequential:
    """A convolution from the student's width and size to the teacher's, a batch norm and a ReLU.

    The convolution is 3x3 of stride 2 where the student's map is twice as large as the teacher's; a transposed one of
    4x4 and stride 2 where it is half as large; else, where it is as large or larger, one without padding whose kernel
    leaves the teacher's size.

    Args:
        d_s: Width of the student's map.
        d_t: Width of the teacher's.
        size_s: Height and width of the student's map.
        size_t: Height and width of the teacher's.

    Returns:
        The three layers. The norm has the statistics of the batch, of all processes, in evaluation too.

    Raises:
        UserError: If a width or a size is below 1.

    Deviates from: the published code (``ConvReg`` of HobbitLong/RepDistiller), which has no layer for a student's map
        that is smaller than the teacher's by another factor than 2; here it is a 1x1 convolution, and the term averages
        the teacher's map. The bias of the convolution, which the norm cancels, is left out.

    References:
        A. Romero, N. Ballas, S. E. Kahou, A. Chassang, C. Gatta, Y. Bengio, "FitNets: Hints for Thin Deep Nets",
        ICLR 2015, section 2.2, whose regressor is the convolution alone.

    Example:
        >>> regressor(16, 64, size_s=(16, 16), size_t=(8, 8))(torch.randn(2, 16, 16, 16)).shape
        torch.Size([2, 64, 8, 8])
    """
    (h_s, w_s), (h_t, w_t) = size_s, size_t
    if min(d_s, d_t, h_s, w_s, h_t, w_t) < 1:
        raise UserError(f"regressor: widths are {(d_s, d_t)} and sizes {(h_s, w_s)}, {(h_t, w_t)}; expected at least 1")
    if (h_s, w_s) == (2 * h_t, 2 * w_t):
        layer: nn.Module = nn.Conv2d(d_s, d_t, 3, stride=2, padding=1, bias=False)
    elif (2 * h_s, 2 * w_s) == (h_t, w_t):
        layer = nn.ConvTranspose2d(d_s, d_t, 4, stride=2, padding=1, bias=False)
    else:
        kernel = (1 + h_s - h_t, 1 + w_s - w_t) if h_s >= h_t and w_s >= w_t else (1, 1)
        layer = nn.Conv2d(d_s, d_t, kernel, bias=False)
    return nn.Sequential(layer, BatchNorm2d(d_t), nn.ReLU())


@final
class HintTerm(nn.Module):
    """A hint: the student's map, through a regressor, is to be the teacher's map, position by position.

    ``loss( r(x_s), x_t )`` with r the regressor, over all positions; where the sizes differ, the larger of the two maps
    is averaged down to the other's.

    Rewards and ignores what ``loss`` does, at each position. Where the sizes agree and a regressor of single positions
    is enough (a 1x1 convolution), :class:`limbeck.terms.FeatureTerm` does the same, and has norms besides::

        FeatureTerm(
            "layer2",
            "layer2",
            projector=projectors.linear(32, 128, bias=True),
            loss=losses.mean_squared_error,
            student_pool=pooling.spatial_positions,
            teacher_pool=pooling.spatial_positions,
        )

    This term is for what that one cannot do: a regressor that sees neighboring positions, and maps of unlike sizes.
    Across processes the losses are averaged by their numbers of images: exactly the loss of the global batch where
    ``loss`` is a mean over images.

    Args:
        student_tap: Tap of the student, a map ``(n, c, h, w)``.
        teacher_tap: Tap of the teacher, a map.
        regressor: Module from the student's map to one of the teacher's width, for instance :func:`regressor`;
            ``nn.Identity()`` for a student that has its own projector (:class:`limbeck.rivals.ReusedClassifier`).
        loss: Loss of two same-shaped tensors ``(n, positions, c)`` that is a mean over images.

    Raises:
        UserError: On a call, if a feature is no map, or the regressor's width is not the teacher's.

    Deviates from: FitNets, which trains on the hint alone first and on the soft targets after; here the weights, which
        may be functions of the progress, say what is trained when.

    References:
        A. Romero, N. Ballas, S. E. Kahou, A. Chassang, C. Gatta, Y. Bengio, "FitNets: Hints for Thin Deep Nets",
        ICLR 2015, equation 3.

    Example:
        >>> term = HintTerm("a", "b", regressor=regressor(4, 6, size_s=(4, 4), size_t=(2, 2)))
        >>> student = Captured(torch.zeros(8), {"a": torch.randn(8, 4, 4, 4)})
        >>> teacher = Captured(torch.zeros(8), {"b": torch.randn(8, 6, 2, 2)})
        >>> term(student, teacher).ndim
        0
    """

    readings: dict[str, Tensor]

    def __init__(
        self, student_tap: str, teacher_tap: str, *, regressor: nn.Module, loss: Loss = losses.mean_squared_error
    ) -> None:
        super().__init__()
        self.student_taps = (student_tap,)
        self.teacher_taps = (teacher_tap,)
        self.regressor = regressor
        self.loss = loss
        self.readings = {}

    def forward(self, student: Captured, teacher: Captured) -> Float[Tensor, ""]:
        """The loss of one batch; see the class. The reading is the mean cosine of the two maps' positions."""
        x_s, x_t = student.features[self.student_taps[0]], teacher.features[self.teacher_taps[0]]
        if x_s.ndim != 4 or x_t.ndim != 4:
            raise UserError(
                f'HintTerm: "{self.student_taps[0]}" of the student is {tuple(x_s.shape)} and '
                f'"{self.teacher_taps[0]}" of the teacher {tuple(x_t.shape)}; expected maps (n, c, h, w)'
            )
        y, x_t = to_common_size(self.regressor(x_s), x_t)
        if y.shape != x_t.shape:
            raise UserError(f"HintTerm: the regressor gives {y.shape[1]} channels, and the teacher has {x_t.shape[1]}")
        with torch.autocast(y.device.type, enabled=False):
            a = at_least_float32(pooling.spatial_positions(y))
            t = at_least_float32(pooling.spatial_positions(x_t))
            self.readings = {"cosine": 1 - collectives.global_mean(mean_of_rows(losses.cosine, a.detach(), t), len(a))}
            return collectives.global_mean(mean_of_rows(self.loss, a, t), len(a))

    def extra_repr(self) -> str:
        """The taps, for ``print``."""
        return f"{self.student_taps[0]} -> {self.teacher_taps[0]}"
