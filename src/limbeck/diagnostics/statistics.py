"""Whether images reach a model as it knows them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from limbeck.diagnostics.fit import mean_confidence
from limbeck.distiller import evaluating


class NormShift(NamedTuple):
    """How far the statistics of a batch are from those that a batch norm has learned; see :func:`first_norm_shift`.

    Attributes:
        layer: Name of the batch norm.
        shift: Root mean square, over channels, of the difference of the means in running deviations; 0 for the images
            that the model was trained on.
        scale: Geometric mean, over channels, of the batch's deviation over the running one; 1 for those images.
    """

    layer: str
    shift: float
    scale: float


def first_norm_shift(model: nn.Module, x: Float[Tensor, "n c h w"]) -> NormShift | None:
    """Compare what reaches the first batch norm of a model with the statistics that this one has kept.

    In front of it there is as a rule one convolution, so that both numbers speak of the images: another mean shows in
    the shift, another deviation in the scale, and other colors in both. It needs no labels.

    Args:
        model: The model; it is run once, in eval mode.
        x: Images, as they are given to it.

    Returns:
        The comparison; None where no batch norm with running statistics runs.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.BatchNorm2d(1))
        >>> first_norm_shift(model, torch.tensor([1.0, 5.0]).view(2, 1, 1, 1))  # mean 3, deviation 2; it has 0 and 1
        NormShift(layer='0', shift=3.0, scale=2.0)
    """
    names: dict[nn.Module, str] = {layer: name for name, layer in model.named_modules()}
    found: list[NormShift] = []

    def read(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if found or not isinstance(layer, _BatchNorm) or layer.running_mean is None or layer.running_var is None:
            return
        values = inputs[0].transpose(0, 1).flatten(1).float()
        known = layer.running_var.clamp(min=1e-12).sqrt()
        shift = (values.mean(1) - layer.running_mean) / known
        ratio = values.std(1, correction=0).clamp(min=1e-12) / known
        found.append(NormShift(names[layer], float(shift.square().mean().sqrt()), float(ratio.log().mean().exp())))

    hooks = [layer.register_forward_pre_hook(read) for layer in names if isinstance(layer, _BatchNorm)]
    try:
        if hooks:
            with evaluating(model):
                model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def confidence_under(
    model: nn.Module, images: Float[Tensor, "n 3 h w"], transforms: Mapping[str, nn.Module]
) -> dict[str, float]:
    """Confidence of a classifier under several normalizations.

    For models without a batch norm, such as vision transformers. As a rule the right one gives the greatest; but a
    classifier may also be sure of images that are nothing like those that it knows, so it is a hint and no proof.

    Args:
        model: The classifier.
        images: In [0, 1].
        transforms: Name to what normalizes them.

    Returns:
        Name to :func:`limbeck.diagnostics.mean_confidence`.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
        >>> sorted(confidence_under(model, torch.rand(2, 3, 2, 2), {"own": nn.Identity()}))
        ['own']
    """
    with evaluating(model):
        return {name: float(mean_confidence(model(transform(images)))) for name, transform in transforms.items()}
