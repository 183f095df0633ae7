"""How the parts of a loss pull on the same parameters."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from limbeck.diagnostics.inputs import matmul
from limbeck.distiller import TASK
from limbeck.errors import UserError, did_you_mean
from limbeck.norms.roots import widest


class Balance(NamedTuple):
    """What :func:`gradient_balance` found.

    Attributes:
        norms: Norm of the gradient of each part, unweighted.
        weighted: The same, times its weight.
        cosines: Of the angle between the gradients of two parts, in the order of the parts; 0 where one has none. Below
            0 they work against each other.
        suggested: Weight at which a part pulls as hard as the task does at its own; of every part but the task, where
            both have a gradient.
    """

    norms: dict[str, float]
    weighted: dict[str, float]
    cosines: dict[tuple[str, str], float]
    suggested: dict[str, float]


def gradient_balance(
    parts: Mapping[str, Tensor], weights: Mapping[str, float], parameters: Sequence[nn.Parameter]
) -> Balance:
    """Norms, angles and a suggested weight of the gradients of a loss's parts, on one batch.

    Give the student's parameters: a term's own projector is pulled by this term alone. One backward pass is made for
    each part; no ``.grad`` is touched, and the graph stays, so that the loss can still be trained on. The gradients of
    all parts are held at once.

    The suggestion makes the parts as long as the task's. It is where to start a search, not its end: under AdamW and in
    the presence of noise a longer gradient is no better one.

    Args:
        parts: Name to unweighted loss, a scalar with its graph; the task's is called "task".
        weights: Name to weight, for every part.
        parameters: What the parts pull on; those that are frozen are left out.

    Returns:
        The balance, in numbers.

    Raises:
        UserError: If there are no parts or no parameters, a part is no scalar or has no weight.

    Deviates from: the reference, which changes weights while it trains; this only measures.

    References:
        Z. Chen, V. Badrinarayanan, C.-Y. Lee, A. Rabinovich, "GradNorm: Gradient Normalization for Adaptive Loss
        Balancing in Deep Multitask Networks", ICML 2018.

    Example:
        >>> w = nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> parts = {"task": 3 * w[0], "feature": w[0] + w[1]}
        >>> found = gradient_balance(parts, {"task": 1.0, "feature": 2.0}, [w])
        >>> found.norms["task"], round(found.cosines["task", "feature"], 4), round(found.suggested["feature"], 4)
        (3.0, 0.7071, 2.1213)
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not parts or not trained:
        raise UserError(f"gradient_balance: {len(parts)} parts, {len(trained)} parameters; expected at least one each")
    for name, part in parts.items():
        if part.numel() != 1:
            raise UserError(f'gradient_balance: part "{name}" is {tuple(part.shape)}; expected a scalar')
        if name not in weights:
            raise UserError(f'gradient_balance: part "{name}" has no weight{did_you_mean(name, weights)}')
    names = list(parts)
    gram = _gram([_gradients(part, trained) for part in parts.values()])
    sizes = [row[i] ** 0.5 for i, row in enumerate(gram)]
    norms = dict(zip(names, sizes, strict=True))
    weighted = {name: abs(weights[name]) * norm for name, norm in norms.items()}
    cosines = {
        (names[i], names[j]): gram[i][j] / (sizes[i] * sizes[j]) if sizes[i] * sizes[j] > 0 else 0.0
        for i in range(len(names))
        for j in range(i + 1, len(names))
    }
    goal = weighted.get(TASK, 0.0)
    suggested = {name: goal / norm for name, norm in norms.items() if name != TASK and goal > 0 and norm > 0}
    return Balance(norms, weighted, cosines, suggested)


def _gradients(part: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    """Zero for what the part does not depend on."""
    if not part.requires_grad:
        return [torch.zeros_like(parameter) for parameter in parameters]
    found = torch.autograd.grad(part.sum(), parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    return list(found)


def _gram(gradients: list[list[Tensor]]) -> list[list[float]]:
    """Inner products of all gradients with each other, summed over the parameters in float64."""
    total: Tensor | None = None
    for of_parameter in zip(*gradients, strict=True):
        stacked = torch.stack([each.flatten().to(widest(each.device)) for each in of_parameter])
        share = matmul(stacked, stacked.T)
        total = share if total is None else total + share.to(total.device)
    assert total is not None
    return total.tolist()
