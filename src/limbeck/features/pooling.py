"""Pooling: from what a model gives (maps, tokens, vectors) to rows of channels. The only file that reshapes features.

A pool is a function of one tensor. The result is ``(n, c)``, or ``(n, positions, c)`` for the dense ones, where every
position becomes a row of its own for norm and loss, or ``(n, c, h, w)`` for losses of maps. Pools keep the data type.
Each checks the number of dimensions, but nothing in a tensor says what its dimensions mean: NHWC maps (Swin) and a
class token have to be named.
"""

import functools
import math
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from limbeck.errors import UserError

Pool = Callable[[Tensor], Tensor]


def automatic(x: Float[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
    """Guess by the number of dimensions: vectors as they are, tokens and NCHW maps averaged.

    Two dimensions are a vector. Three are tokens ``(n, tokens, c)``: all of them are averaged, class and register
    tokens included, since nothing here tells them from patches; use ``token_mean(prefix)`` or ``class_token`` where
    that matters. Four are a map ``(n, c, h, w)``: averaged over its positions; use ``spatial_mean_nhwc`` for the
    models that have the channels last as their shape (Swin), not only in memory.

    Raises:
        UserError: If there are fewer than two or more than four dimensions.

    Example:
        >>> import torch
        >>> automatic(torch.ones(8, 512, 7, 7)).shape, automatic(torch.ones(8, 197, 384)).shape
        (torch.Size([8, 512]), torch.Size([8, 384]))
    """
    if x.ndim == 2:
        return x
    if x.ndim == 3:
        return x.mean(1)
    if x.ndim == 4:
        return x.mean((2, 3))
    raise UserError(f"automatic pool: got {tuple(x.shape)}; expected (n, c), (n, tokens, c) or (n, c, h, w)")


def vector(x: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    """The feature as it is: ``(n, c)``.

    Raises:
        UserError: If it is no vector.

    Example:
        >>> import torch
        >>> vector(torch.ones(8, 512)).shape
        torch.Size([8, 512])
    """
    _check("vector", x, "n c")
    return x


def spatial_mean(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c"]:
    """Mean over the positions of a map, as the global pooling of a CNN has it.

    Raises:
        UserError: If it does not have four dimensions.

    Example:
        >>> import torch
        >>> spatial_mean(torch.ones(8, 512, 7, 7)).shape
        torch.Size([8, 512])
    """
    _check("spatial_mean", x, "n c h w")
    return x.mean((2, 3))


def spatial_mean_nhwc(x: Float[Tensor, "n h w c"]) -> Float[Tensor, "n c"]:
    """Mean over the positions of a map that has its channels last, such as Swin's.

    Raises:
        UserError: If it does not have four dimensions.

    Example:
        >>> import torch
        >>> spatial_mean_nhwc(torch.ones(8, 7, 7, 768)).shape
        torch.Size([8, 768])
    """
    _check("spatial_mean_nhwc", x, "n h w c")
    return x.mean((1, 2))


def class_token(x: Float[Tensor, "n tokens c"]) -> Float[Tensor, "n c"]:
    """The first token.

    Raises:
        UserError: If it does not have three dimensions.

    Example:
        >>> import torch
        >>> class_token(torch.ones(8, 197, 384)).shape
        torch.Size([8, 384])
    """
    _check("class_token", x, "n tokens c")
    return x[:, 0]


def token_mean(prefix: int = 1) -> Pool:
    """A pool that averages the patch tokens, leaving out the ``prefix`` first ones.

    Args:
        prefix: Number of tokens before the patches: class, distillation and register tokens (timm calls it
            ``num_prefix_tokens``). 1 for a plain ViT, 2 for a distilled DeiT, 0 for one that has patches alone.

    Returns:
        The pool ``(n, tokens, c) -> (n, c)``.

    Raises:
        UserError: If prefix is negative; on a call, if there are not three dimensions or no token is left.

    Example:
        >>> import torch
        >>> token_mean(1)(torch.ones(8, 197, 384)).shape
        torch.Size([8, 384])
    """
    _check_prefix("token_mean", prefix)
    return functools.partial(_token_mean, prefix=prefix)


def spatial_positions(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n positions c"]:
    """Every position of a map as a row, in reading order, to match dense features.

    Raises:
        UserError: If it does not have four dimensions.

    Example:
        >>> import torch
        >>> spatial_positions(torch.ones(8, 512, 7, 7)).shape
        torch.Size([8, 49, 512])
    """
    _check("spatial_positions", x, "n c h w")
    return x.flatten(2).transpose(1, 2)


def token_positions(prefix: int = 1) -> Pool:
    """A pool that keeps every patch token as a row, leaving out the ``prefix`` first ones, to match dense features.

    Args:
        prefix: Number of tokens before the patches, as in :func:`token_mean`.

    Returns:
        The pool ``(n, tokens, c) -> (n, tokens - prefix, c)``.

    Raises:
        UserError: If prefix is negative; on a call, if there are not three dimensions or no token is left.

    Example:
        >>> import torch
        >>> token_positions(1)(torch.ones(8, 197, 384)).shape
        torch.Size([8, 196, 384])
    """
    _check_prefix("token_positions", prefix)
    return functools.partial(_token_positions, prefix=prefix)


def grid_positions(height: int, width: int, *, prefix: int = 0, channels_last: bool = False) -> Pool:
    """A pool that averages a map, or square tokens, over the cells of a grid and keeps every cell as a row.

    Two features of unlike resolution meet on a grid no finer than either: a map of 56 x 56 and the patches of a ViT on
    14 x 14. Where the grid divides the map, the cells are disjoint; else they are those of adaptive average pooling,
    which overlap by a position. On a grid of the map's own size nothing is averaged.

    Args:
        height: Rows of the grid.
        width: Columns of the grid.
        prefix: Tokens before the patches, as in :func:`token_mean`; not used for maps.
        channels_last: Whether four dimensions are ``(n, h, w, c)``, as Swin has them.

    Returns:
        The pool ``(n, c, h, w)``, ``(n, h, w, c)`` or ``(n, prefix + side^2, c)`` ``-> (n, height * width, c)``.

    Raises:
        UserError: If a side of the grid is below 1 or prefix negative; on a call, if the feature is neither a map nor
            square tokens, or is coarser than the grid.

    Example:
        >>> import torch
        >>> pool = grid_positions(7, 7)
        >>> pool(torch.ones(8, 512, 28, 28)).shape, pool(torch.ones(8, 196, 384)).shape
        (torch.Size([8, 49, 512]), torch.Size([8, 49, 384]))
    """
    if height < 1 or width < 1:
        raise UserError(f"grid_positions: the grid is {height} x {width}; expected 1 x 1 or more")
    _check_prefix("grid_positions", prefix)
    return functools.partial(_grid_positions, size=(height, width), prefix=prefix, channels_last=channels_last)


def unpooled(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """A map as it is, for losses of maps. Tokens become one by :func:`token_map`.

    Raises:
        UserError: If it does not have four dimensions.

    Example:
        >>> import torch
        >>> unpooled(torch.ones(8, 512, 7, 7)).shape
        torch.Size([8, 512, 7, 7])
    """
    _check("unpooled", x, "n c h w")
    return x


def token_map(prefix: int = 1) -> Pool:
    """A pool that lays the patch tokens out as the square map that they are, so that a ViT meets a CNN.

    The patches are taken to be in reading order, as every ViT has them. The opposite of :func:`spatial_positions`.

    Args:
        prefix: Number of tokens before the patches, as in :func:`token_mean`.

    Returns:
        The pool ``(n, prefix + side^2, c) -> (n, c, side, side)``.

    Raises:
        UserError: If prefix is negative; on a call, if there are not three dimensions, no token is left, or those left
            are no square.

    Example:
        >>> import torch
        >>> token_map(1)(torch.ones(8, 197, 384)).shape
        torch.Size([8, 384, 14, 14])
    """
    _check_prefix("token_map", prefix)
    return functools.partial(_token_map, prefix=prefix)


# Module-level functions, bound with functools.partial and not closed over, so that a term with a pool can be pickled.
def _token_mean(x: Float[Tensor, "n tokens c"], *, prefix: int) -> Float[Tensor, "n c"]:
    return _patches("token_mean", x, prefix).mean(1)


def _token_positions(x: Float[Tensor, "n tokens c"], *, prefix: int) -> Float[Tensor, "n patches c"]:
    return _patches("token_positions", x, prefix)


def _token_map(x: Float[Tensor, "n tokens c"], *, prefix: int) -> Float[Tensor, "n c side side"]:
    patches = _patches("token_map", x, prefix)
    side = math.isqrt(patches.shape[1])
    if side * side != patches.shape[1]:
        raise UserError(
            f"token_map: got {x.shape[1]} tokens, of which {prefix} are prefix; "
            f"expected a square number of patches, not {patches.shape[1]}"
        )
    return patches.transpose(1, 2).reshape(x.shape[0], x.shape[2], side, side)


def _grid_positions(
    x: Float[Tensor, "n ..."], *, size: tuple[int, int], prefix: int, channels_last: bool
) -> Float[Tensor, "n cells c"]:
    if x.ndim == 3:
        x = _token_map(x, prefix=prefix)
    elif x.ndim == 4 and channels_last:
        x = x.movedim(3, 1)
    _check("grid_positions", x, "n c h w")
    (h, w), (height, width) = x.shape[2:], size
    if h < height or w < width:
        raise UserError(f"grid_positions: got {h} x {w} positions; expected a grid of {height} x {width} at the least")
    if (h, w) == size:
        return spatial_positions(x)
    if h % height == 0 and w % width == 0:
        x = functional.avg_pool2d(x, (h // height, w // width))  # its gradient is deterministic on every device
    else:
        x = functional.adaptive_avg_pool2d(x, size)
    return spatial_positions(x)


def _patches(name: str, x: Tensor, prefix: int) -> Tensor:
    _check(name, x, "n tokens c")
    if x.shape[1] <= prefix:
        raise UserError(f"{name}: got {x.shape[1]} tokens, of which {prefix} are prefix; expected at least one more")
    return x[:, prefix:]


def _check(name: str, x: Tensor, shape: str) -> None:
    if x.ndim != len(shape.split()):
        raise UserError(f"{name}: got {tuple(x.shape)}; expected ({', '.join(shape.split())})")


def _check_prefix(name: str, prefix: int) -> None:
    if prefix < 0:
        raise UserError(f"{name}: prefix is {prefix}; expected 0 or more")
