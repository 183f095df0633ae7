"""Variational information distillation (VID)."""

import math
from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.distributed import collectives
from limbeck.errors import UserError
from limbeck.features import pooling
from limbeck.features.taps import Captured
from limbeck.losses.inputs import at_least_float32
from limbeck.rivals.maps import to_common_size


@final
class VIDTerm(nn.Module):
    """Variational information distillation: how unlikely the teacher's features are, given the student's.

    For each pair of layers a regressor ``mu`` predicts the teacher's feature t from the student's, and a variance is
    learned for each of the teacher's channels; the loss is the negative logarithm of the Gaussian, without its
    constant::

        sum over layers of  mean_{n,p,j} 1/2 ( (mu_j(x_s[n,p]) - t[n,p,j])^2 / v_j + log v_j ),   v = softplus(r) + eps

    with positions p of a map (or tokens), channels j and learned r. Rewards a student out of which the teacher's
    features can be predicted: a lower bound of their mutual information. Ignores, by growing v, channels that the
    student cannot predict, instead of letting them rule the loss as a squared error does. A mean over images,
    positions and channels, a sum over layers: the value depends on neither N nor D. It has no lower bound but that of
    eps: about ``1/2 log eps`` a layer where the prediction is exact.

    Across processes only sums are exchanged; the value is that of the global batch.

    Args:
        student_taps: Taps of the student, shallow to deep: maps ``(n, c, h, w)``, tokens ``(n, tokens, c)`` or vectors.
        teacher_taps: As many of the teacher, each of the same kind as its partner. Maps of another size are averaged
            down to the smaller one; tokens must be equally many.
        d_s: Width of each student tap.
        d_t: Width of each teacher tap.
        hidden: Width of the regressors' two hidden layers; by default the teacher's at each layer, as in the CRD
            benchmark.
        variance: What the variances start at.
        eps: Least variance.

    Raises:
        UserError: If the lists are empty or differ in length, a width is below 1, or the variance is not above eps; on
            a call, if a feature has another width or kind than expected.

    Deviates from: the published code in pooling maps that are not square to the smaller height and the smaller width,
        and in taking tokens and vectors, for which the regressor is the same stack of linear maps.

    References:
        S. Ahn, S. X. Hu, A. Damianou, N. D. Lawrence, Z. Dai, "Variational Information Distillation for Knowledge
        Transfer", CVPR 2019, section 2, the Gaussian with a softplus variance a channel; three 1x1 convolutions without
        bias, variance 5 and eps are from the code (ssahn0215/variational-information-distillation, which
        HobbitLong/RepDistiller continues).

    Example:
        >>> term = VIDTerm(["a"], ["b"], d_s=[4], d_t=[6])
        >>> student = Captured(torch.zeros(8), {"a": torch.randn(8, 4, 4, 4)})
        >>> teacher = Captured(torch.zeros(8), {"b": torch.randn(8, 6, 2, 2)})
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
        hidden: int | None = None,
        variance: float = 5.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        counts = [len(student_taps), len(teacher_taps), len(d_s), len(d_t)]
        if len(set(counts)) > 1 or not student_taps:
            raise UserError(f"VIDTerm: got {counts} student taps, teacher taps, d_s and d_t; expected equally many")
        if min(*d_s, *d_t, hidden if hidden is not None else 1) < 1:
            raise UserError(f"VIDTerm: widths are {[*d_s]}, {[*d_t]} and hidden {hidden}; expected at least 1")
        if not variance > eps > 0:
            raise UserError(f"VIDTerm: variance is {variance} and eps {eps}; expected variance > eps > 0")
        self.student_taps = tuple(student_taps)
        self.teacher_taps = tuple(teacher_taps)
        self.d_s = tuple(d_s)
        self.eps = eps
        self.regressors = nn.ModuleList(_regressor(s, t, hidden or t) for s, t in zip(d_s, d_t, strict=True))
        start = math.log(math.expm1(variance - eps))  # the softplus of it is the variance, less eps
        self.scales = nn.ParameterList(nn.Parameter(torch.full((t,), start)) for t in d_t)
        self.readings = {}

    def forward(self, student: Captured, teacher: Captured) -> Float[Tensor, ""]:
        """The loss of one batch; see the class."""
        values: list[Tensor] = []
        errors: list[Tensor] = []
        variances: list[Tensor] = []
        for tap_s, tap_t, width, regressor, scale in zip(
            self.student_taps, self.teacher_taps, self.d_s, self.regressors, self.scales, strict=True
        ):
            x_s, x_t = _positions(student.features[tap_s], teacher.features[tap_t])
            if x_s.shape[-1] != width or x_t.shape[-1] != len(scale) or x_s.shape[:-1] != x_t.shape[:-1]:
                raise UserError(
                    f'VIDTerm: rows of "{tap_s}" of the student are {tuple(x_s.shape)} and of "{tap_t}" of the teacher '
                    f"{tuple(x_t.shape)}; expected as many, of widths {width} and {len(scale)}"
                )
            mu = regressor(x_s)
            with torch.autocast(mu.device.type, enabled=False):
                v = F.softplus(at_least_float32(scale)) + self.eps
                error = (at_least_float32(mu) - at_least_float32(x_t)).square()
                values.append(collectives.global_mean(((error / v + v.log()) / 2).mean(), error.numel()))
                errors.append(collectives.global_mean(error.detach().mean(), error.numel()))
                variances.append(v.detach().mean())
        self.readings = {"error": torch.stack(errors).mean(), "variance": torch.stack(variances).mean()}
        return torch.stack(values).sum()

    def extra_repr(self) -> str:
        """The taps, for ``print``."""
        return ", ".join(f"{s} -> {t}" for s, t in zip(self.student_taps, self.teacher_taps, strict=True))


def _positions(x_s: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
    """Both features with their channels last, maps at a common size."""
    if x_s.ndim == 4 and x_t.ndim == 4:
        x_s, x_t = to_common_size(x_s, x_t)
        return pooling.spatial_positions(x_s), pooling.spatial_positions(x_t)
    return x_s, x_t


def _regressor(d_s: int, d_t: int, hidden: int) -> nn.Sequential:
    """Three linear maps along the channels, which are 1x1 convolutions."""
    return nn.Sequential(
        nn.Linear(d_s, hidden, bias=False),
        nn.ReLU(),
        nn.Linear(hidden, hidden, bias=False),
        nn.ReLU(),
        nn.Linear(hidden, d_t, bias=False),
    )
