"""The spectrum of a projector with more layers than one: it has no one matrix, and the Jacobian takes its place.

A Jacobian differs from row to row; of a linear projector it is W, in the paper's layout, ``d_s x d_t``.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.diagnostics.inputs import check_finite
from limbeck.diagnostics.spectrum import singular_values
from limbeck.errors import UserError
from limbeck.losses.inputs import at_least_float32


def local_jacobians(projector: nn.Module, x: Float[Tensor, "n d_s"]) -> Float[Tensor, "n d_s d_t"]:
    """Jacobian of a projector at each row: the linear map that it is near that row, in the layout of W.

    For a linear projector each is W. Of a perceptron with ReLU it is the product of its matrices with the hidden
    channels that are off at this row taken out.

    Args:
        projector: Any module that maps rows one by one, in eval mode if it has a norm that would mix them.
        x: Student features, in front of the projector, in the precision of its parameters (half precisions are taken
            to float32).

    Returns:
        A matrix for each row. Together they have ``n d_s d_t`` numbers: give few rows.

    Raises:
        UserError: If there are no rows or they are not finite.

    Deviates from: the paper, which shows the spectrum of linear projectors alone.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> torch.equal(local_jacobians(layer, torch.randn(5, 3))[4], layer.weight.T)
        True
    """
    _check_rows("local_jacobians", x)
    with torch.inference_mode(False), torch.autocast(x.device.type, enabled=False):  # with gradient, whoever calls
        leaf = at_least_float32(x.detach().clone()).requires_grad_()
        y = projector(leaf)
        units = torch.eye(y.shape[1], dtype=y.dtype, device=y.device)[:, None].expand(-1, len(x), -1)
        (slopes,) = torch.autograd.grad(y, leaf, units, is_grads_batched=True)  # of every row by itself
    return slopes.permute(1, 2, 0)


def local_spectrum(projector: nn.Module, x: Float[Tensor, "n d_s"]) -> Float[Tensor, " r"]:
    """Singular values of the local Jacobians, the greatest first, each averaged over the rows.

    For a linear projector they are those of W. The k-th value is the mean of the k-th values: directions differ from
    row to row, and this is what a row meets, not the spectrum of the mean Jacobian.

    Args:
        projector: As in :func:`local_jacobians`.
        x: Student features; each costs a Jacobian and a decomposition, so give few.

    Returns:
        As many as the smaller width, in at least float32.

    Raises:
        UserError: If there are no rows, or they or a Jacobian are not finite.

    Deviates from: the paper, which shows the spectrum of linear projectors alone.

    Example:
        >>> projector = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU())
        >>> projector[0].weight.data = torch.diag(torch.tensor([3.0, 1.0]))
        >>> local_spectrum(projector, torch.tensor([[1.0, 1.0], [-1.0, 1.0]]))  # 3, 1 and 1, 0
        tensor([2.0000, 0.5000])
    """
    _check_rows("local_spectrum", x)
    return torch.stack([singular_values(local_jacobians(projector, row[None])[0]) for row in x]).mean(0)


def _check_rows(name: str, x: Tensor) -> None:
    if x.ndim != 2 or x.numel() == 0:
        raise UserError(f"{name}: x is {tuple(x.shape)}; expected (n, d_s)")
    check_finite(name, x=x)
