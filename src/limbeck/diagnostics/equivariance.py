"""Whether features move along when the image does."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.diagnostics.inputs import check_finite
from limbeck.distiller import evaluating
from limbeck.errors import UserError
from limbeck.features import pooling
from limbeck.features.taps import Taps
from limbeck.losses.inputs import at_least_float32


def translation_error(
    features: Float[Tensor, "n d h w"], shifted_features: Float[Tensor, "n d h w"], shift: tuple[int, int]
) -> Float[Tensor, ""]:
    """How far the features of a shifted image are from the shifted features: 0 where they move along exactly.

    ``sum |f(T x) - T f(x)|^2 / sum |f(x) - mean f(x)|^2``, the mean being that of each image and channel over its
    positions. What does not differ from position to position tells nothing about a shift, and without it in the
    denominator features would seem to move along that are the same everywhere. The error ignores the scale of the
    features. Features that keep nothing of where things are relative to each other (as if positions were drawn anew)
    have 2; features that stay where they are when the image moves have up to 2 as well.

    Args:
        features: Of the images, f(x).
        shifted_features: Of the shifted images, f(T x).
        shift: By how many positions the images were shifted, down and to the right, around the edge.

    Returns:
        The error, in at least float32; infinite where the features are the same everywhere, but those of the shifted
        images are other ones.

    Raises:
        UserError: If the shapes differ or something is not finite.

    Deviates from: the paper, which has the mean squared difference itself: it depends on the scale of the features,
        and so on the model, and the translation is not said.

    References:
        R. Miles, K. Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
        table 7 (6.7 in the reprint in R. Miles's thesis).

    Example:
        >>> grid = torch.tensor([[[[1.0, 2.0, 3.0]]]])
        >>> translation_error(grid, torch.tensor([[[[3.0, 1.0, 2.0]]]]), (0, 1)), translation_error(grid, grid, (0, 1))
        (tensor(0.), tensor(3.))
    """
    if features.shape != shifted_features.shape or features.ndim != 4 or features.numel() == 0:
        raise UserError(
            f"translation_error: features are {tuple(features.shape)} and {tuple(shifted_features.shape)}; "
            "expected (n, d, h, w) twice"
        )
    check_finite("translation_error", features=features, shifted_features=shifted_features)
    still, moved = at_least_float32(features), at_least_float32(shifted_features)
    difference = (moved - still.roll(shift, (2, 3))).square().mean()
    deviation = (still - still.mean((2, 3), keepdim=True)).square().mean()
    return torch.where(difference > 0, difference / deviation, 0)


def block_equivariance(
    model: nn.Module, images: Float[Tensor, "n c h w"], taps: Sequence[str], *, patches: int = 1
) -> dict[str, float]:
    """:func:`translation_error` of blocks of a vision transformer, for images shifted by whole patches.

    The images are shifted around the edge, by ``patches`` patches down and as many to the right, and the features of
    the patch tokens compared at the shifted positions. Without position embeddings every block of attention has 0, as
    patches are a set to it. What is above 0 is what the model makes of absolute positions, or of the image's edge if
    its patches overlap.

    Args:
        model: Vision transformer; it is run twice, in eval mode, and given back in the mode that it had.
        images: Square ones, normalized as the model wants them.
        taps: Blocks, as :class:`limbeck.features.taps.Taps` names them, that give tokens ``(n, tokens, d)``. The
            patches are the greatest square number of tokens, and what goes beyond it prefix tokens (class, registers),
            which come first; so a grid of g x g can have up to 2 g of these.
        patches: Length of the shift, in patches.

    Returns:
        Tap to error.

    Raises:
        UserError: If the images are not square, a tap gives no tokens, its grid is no divisor of the image or smaller
            than the shift asks for, or two taps have different grids.

    Deviates from: the paper, see :func:`translation_error`.

    References:
        R. Miles, K. Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
        table 7 (6.7 in the reprint in R. Miles's thesis).

    Example:
        >>> patch_embed = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Flatten(2))
        >>> class Tokens(nn.Module):
        ...     def forward(self, x):
        ...         return x.transpose(1, 2)
        >>> model = nn.Sequential(patch_embed, Tokens(), nn.Linear(8, 8))
        >>> block_equivariance(model, torch.randn(2, 3, 16, 16), ["2"])["2"] < 1e-10
        True
    """
    if images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise UserError(f"block_equivariance: images are {tuple(images.shape)}; expected square ones, (n, c, h, h)")
    if patches < 1:
        raise UserError(f"block_equivariance: patches is {patches}; expected at least 1")
    read = Taps(model, taps)
    with evaluating(model):
        still = {name: _grid(name, x) for name, x in read(images).features.items()}
        side = _common_side(still, images.shape[2], patches)
        pixels = patches * (images.shape[2] // side)
        moved = read(images.roll((pixels, pixels), (2, 3))).features
    return {
        name: float(translation_error(grid, _grid(name, moved[name]), (patches, patches)))
        for name, grid in still.items()
    }


def _grid(name: str, tokens: Tensor) -> Tensor:
    """The patch tokens as a map, without the prefix tokens in front."""
    if tokens.ndim != 3:
        raise UserError(f'block_equivariance: tap "{name}" gave {tuple(tokens.shape)}; expected (n, tokens, d)')
    return pooling.token_map(tokens.shape[1] - math.isqrt(tokens.shape[1]) ** 2)(tokens)


def _common_side(grids: dict[str, Tensor], pixels: int, patches: int) -> int:
    sides = {name: grid.shape[-1] for name, grid in grids.items()}
    if len(set(sides.values())) != 1:
        raise UserError(f"block_equivariance: the taps have grids of {sides}; expected one or more of the same grid")
    side = next(iter(sides.values()))
    if pixels % side or patches >= side:
        raise UserError(
            f"block_equivariance: {pixels} pixels and a grid of {side} x {side}, to shift by {patches}; "
            "expected whole patches, and a shift below the grid"
        )
    return side
