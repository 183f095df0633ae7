"""Norms that whiten: zero mean, unit variance of every channel, and no correlation between any two."""

from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.losses.inputs import product
from limbeck.norms.roots import inverse_square_root, whitened_by_factor, widest
from limbeck.norms.running import Running
from limbeck.norms.scaling import check_eps, check_width, prepare

# As an absolute floor, in the units of a variance. It takes over from eps where the channels' mean variance falls below
# FLOOR / eps, 0.01 by default, and keeps the gradient for constant features at most a thousandfold.
FLOOR = 1e-6


@final
class ZCA(nn.Module):
    """Whitening with the symmetric map: ``(x - mean) (C + r I)^(-1/2)``, C the covariance over the batch.

    With ``r = eps trace(C)/d + 1e-6`` and the biased covariance (over N), N counting all leading dimensions. Of all
    maps that whiten, this one changes the features least, and it turns with them: a rotation of the input is the same
    rotation of the output. It removes mean, scale and correlation, so that a loss behind it gives each direction the
    weight that each channel has behind a batch norm: rare directions count as much as common ones, the noise among
    them too. From student features whitened like this the least-squares projector is ``W = C_st``, the fixed point that
    the paper's theory starts from. A direction whose variance is far below r goes to zero, as do all that a batch of
    fewer rows than channels does not span: N of several times d is what it is made for. The output's scale depends on
    neither N nor D.

    The covariance is taken in the input's precision, at least float32, its eigenvectors in float64: ``N d^2``
    multiply-adds and an eigendecomposition of d x d in every step.

    Args:
        d: Number of channels, the size of the last dimension.
        eps: Added to every eigenvalue of the covariance, in units of their mean, which makes it free of the features'
            scale. The default is that of :class:`limbeck.norms.BatchNorm`.
        momentum: Weight of the batch in running statistics. 1, the default, has none: the batch's own mean and
            covariance, in training and in evaluation. Below 1, training whitens with, and stores, the weighted mean
            and covariance of the batches so far, ``(1 - a)`` of the last ones and ``a`` of the batch, where a is 1 for
            the first batch and falls to the momentum (see :class:`limbeck.norms.running.Running`); the covariance
            includes that of the batches' means. The gradient sees the batch's part only. In eval mode what is stored
            is used and not changed. Every call in training mode counts as a batch.

    Raises:
        UserError: If d is below 1, eps not positive or the momentum not above 0 and at most 1; on a call, if the last
            dimension is not d, there are fewer than two rows to take statistics of, or running statistics are asked
            for in eval mode before there are any, or the covariance cannot be factorized, as where features are not
            finite; the running statistics are then what they were.

    Deviates from: decorrelated batch normalization in the floor, which is relative here, in having no learned scale
        and shift, no groups, and a bias correction and the covariance between batches in the running statistics.

    References:
        L. Huang, D. Yang, B. Lang, J. Deng, "Decorrelated Batch Normalization", CVPR 2018.
        A. Kessy, A. Lewin, K. Strimmer, "Optimal Whitening and Decorrelation", The American Statistician, 2018.
        R. Miles, I. Elezi, J. Deng, "VkD: Improving Knowledge Distillation using Orthogonal Projections", CVPR 2024
        (whitening of the teacher's features).

    Example:
        >>> ZCA(2, eps=1e-9)(torch.tensor([[30.0, 6.0], [-30.0, -6.0], [30.0, -6.0], [-30.0, 6.0]])).round(decimals=3)
        tensor([[ 1.,  1.],
                [-1., -1.],
                [ 1., -1.],
                [-1.,  1.]])
    """

    def __init__(self, d: int, *, eps: float = 1e-4, momentum: float = 1.0) -> None:
        super().__init__()
        check_width("ZCA", d, least=1)
        check_eps("ZCA", eps)
        running = Running(d, d, momentum=momentum, name="ZCA")
        self.d = d
        self.eps = eps
        self.running = running if momentum < 1 else None

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """The whitened features, in at least float32; see the class."""
        return _whitened("ZCA", x, self.d, self.eps, self.running, _symmetric)

    def extra_repr(self) -> str:
        """The arguments, for ``print``."""
        return f"{self.d}, eps={self.eps}"


@final
class Cholesky(nn.Module):
    """Whitening with a triangular map: ``L^(-1) (x - mean)`` for each row x, where ``L L^T = C + r I``.

    With ``r = eps trace(C)/d + 1e-6`` and C the biased covariance over the batch, as in :class:`ZCA`, of which this is
    a cheaper cousin: it removes the same things, and its output differs from that one's by a rotation. The map is lower
    triangular, so channel j of the output is made of channels 1 to j of the input: the part of channel j that the ones
    before it do not predict, standardized. So, unlike ZCA's, it depends on the order of the channels, and the two sides
    of a loss, whitened each for itself, are comparable channel by channel only if their channels are. It is the same
    for a rescaled channel, up to eps.

    Args:
        d: Number of channels, the size of the last dimension.
        eps: Added to the diagonal of the covariance, in units of its mean; see :class:`ZCA`.
        momentum: Weight of the batch in running statistics, 1 for none; see :class:`ZCA`.

    Raises:
        UserError: As :class:`ZCA`; the covariance cannot be factorized either where eps is below its rounding errors.

    Deviates from: Siarohin et al. in the floor, which is relative here, and in what :class:`ZCA` deviates in. The
        Cholesky whitening of Kessy et al. factorizes the inverse of C instead, which gives an upper triangular map:
        this one with the channels in reversed order.

    References:
        A. Siarohin, E. Sangineto, N. Sebe, "Whitening and Coloring Batch Transform for GANs", ICLR 2019.
        A. Kessy, A. Lewin, K. Strimmer, "Optimal Whitening and Decorrelation", The American Statistician, 2018.

    Example:
        >>> Cholesky(2, eps=1e-12)(torch.tensor([[2.0, 2.0], [-2.0, -2.0], [2.0, 3.0], [-2.0, -3.0]])).round(decimals=3)
        tensor([[ 1., -1.],
                [-1.,  1.],
                [ 1.,  1.],
                [-1., -1.]])
    """

    def __init__(self, d: int, *, eps: float = 1e-4, momentum: float = 1.0) -> None:
        super().__init__()
        check_width("Cholesky", d, least=1)
        check_eps("Cholesky", eps)
        running = Running(d, d, momentum=momentum, name="Cholesky")
        self.d = d
        self.eps = eps
        self.running = running if momentum < 1 else None

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """The whitened features, in at least float32; see the class."""
        return _whitened("Cholesky", x, self.d, self.eps, self.running, _triangular)

    def extra_repr(self) -> str:
        """The arguments, for ``print``."""
        return f"{self.d}, eps={self.eps}"


def _symmetric(centered: Tensor, covariance: Tensor, ridge: Tensor) -> Tensor:
    return product(centered, inverse_square_root(covariance, ridge).to(centered.dtype))  # symmetric


def _triangular(centered: Tensor, covariance: Tensor, ridge: Tensor) -> Tensor:
    with_ridge = covariance + ridge * torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    return whitened_by_factor(centered, with_ridge)


def _whitened(
    name: str,
    x: Tensor,
    d: int,
    eps: float,
    running: Running | None,
    whiten: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """What both whitenings share: the statistics of the batch, the running ones, or both, in the right precision."""
    rows = prepare(name, x, d).reshape(-1, d)
    batch: tuple[Tensor, Tensor, Tensor] | None = None
    with torch.autocast(x.device.type, enabled=False):
        if running is not None and not running.training:
            running.check_seen("no running statistics yet; train on a batch first, or use momentum=1.0")
            centered, covariance = rows - running.mean.to(rows.dtype), running.covariance
        else:
            if rows.shape[0] < 2:
                raise UserError(f"{name}: rows in the batch: {rows.shape[0]}; batch statistics need at least 2")
            first = rows[:1].detach()  # taken off, constant channels of any size are exactly zero; see BatchNorm
            shifted = rows - first
            mean = shifted.mean(0)
            centered = shifted - mean
            covariance = product(centered.mT, centered.mT) / rows.shape[0]
            if running is not None:
                mean = mean + first[0]
                batch = running.blended(mean, covariance)
                centered, covariance = centered + (mean - batch[0]), batch[1]
        covariance = covariance.to(widest(x.device))
        try:
            y = whiten(centered, covariance, eps * covariance.diagonal().mean() + FLOOR)
        except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage, reportUnknownMemberType, reportUnknownVariableType]
            raise UserError(
                f"{name}: the covariance cannot be factorized; the features are not finite, or eps {eps} is too small"
            ) from error
        if running is not None and batch is not None:
            running.keep(*batch)
        return y.reshape(x.shape)
