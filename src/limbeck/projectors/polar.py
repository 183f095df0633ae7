"""A projector that keeps lengths and angles."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from limbeck.losses.inputs import product
from limbeck.norms.roots import inverse_square_root, widest
from limbeck.projectors.layers import check_at_least_one


def orthogonal(d_s: int, d_t: int) -> nn.Linear:
    """A linear map with orthonormal directions: ``z -> z W`` with ``W W^T = I`` if ``d_s <= d_t``, else ``W^T W = I``.

    It keeps all lengths and angles between the student's features (where it is wider than the teacher: those within the
    subspace that it keeps), so nothing of the matching can be done by the projector but the choice of a subspace: the
    student has to. It adds no redundancy and cannot collapse, and the scale of its output is that of the student's
    feature. The paper normalizes the teacher's side only.

    The layer stores a free matrix V and computes the orthonormal matrix nearest to it, its polar factor ``V (V^T
    V)^(-1/2)`` (for the tall one of V and its transpose), whenever ``weight`` is read: at least in float32, in float64
    where the device has it, under autocast too. ``weight`` is a tensor that can be read, and differentiated, as that of
    any linear layer, but not assigned; V is the parameter ``parametrizations.weight.original``. The module can be
    copied and its state dict saved, but it cannot be pickled whole.

    Cost: ``d_s d_t`` multiply-adds a row and parameters; for each pass, whatever the number of rows, ``2 k^2 n`` more
    and an eigendecomposition of ``k x k``, k being the smaller width and n the larger.
    Init: uniform over all orthonormal matrices; V is W then.
    Weight decay: of V under both optimizers, without any effect on W, which does not depend on V's scale: it does not
    shrink. It only keeps V, and so the angle of a step, from drifting, as under weight normalization.

    Args:
        d_s: Width of the student's feature.
        d_t: Width of the teacher's.

    Returns:
        The layer, an ``nn.Linear`` without bias whose ``weight`` is computed.

    Raises:
        UserError: If a width is below 1.

    Deviates from: the paper, which has the first columns of the matrix exponential of a skew-symmetric ``d_t x d_t``
        parameter: the same set of matrices, a third power of the larger width, and no meaning for ``d_s > d_t``. The
        published code has ``torch.nn.utils.parametrizations.orthogonal``, which for unequal widths reads the diagonal
        of its parameter as integers: one step of weight decay takes it from -1 to 0 and the matrix to zero, for good
        (seen with PyTorch 2.15).

    References:
        R. Miles, I. Elezi, J. Deng, "VkD: Improving Knowledge Distillation using Orthogonal Projections", CVPR 2024.
        N. J. Higham, "Computing the Polar Decomposition, with Applications", SIAM J. Sci. Stat. Comput., 1986.

    Example:
        >>> weight = orthogonal(2, 5).weight
        >>> torch.allclose(weight.T @ weight, torch.eye(2), atol=1e-6)
        True
    """
    check_at_least_one("orthogonal", {"d_s": d_s, "d_t": d_t})
    layer = nn.Linear(d_s, d_t, bias=False)
    nn.init.orthogonal_(layer.weight)
    parametrize.register_parametrization(layer, "weight", _Polar())
    return layer


@final
class _Polar(nn.Module):
    """The orthonormal matrix nearest to the stored one."""

    def forward(self, v: Float[Tensor, "d_t d_s"]) -> Float[Tensor, "d_t d_s"]:
        with torch.autocast(v.device.type, enabled=False):
            tall = (v if v.shape[0] >= v.shape[1] else v.mT).to(widest(v.device))
            gram = product(tall.mT, tall.mT)
            # Far below what the result can resolve; keeps a matrix that has lost a direction finite.
            ridge = 1e-12 * gram.diagonal().mean() + 1e-30
            nearest = product(tall, inverse_square_root(gram, ridge)).to(v.dtype)  # which is symmetric
            return nearest if v.shape[0] >= v.shape[1] else nearest.mT
