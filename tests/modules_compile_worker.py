"""Compile norms and projectors into one graph each, compare with the plain value, print the differences as JSON.

In a process of its own, which has no run-time shape checks: as a user has it.
"""

import copy
import json
import sys

import torch
from torch import Tensor, nn

from limbeck import norms, projectors


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ridge() -> nn.Module:
    module = projectors.Ridge(6, 4)
    module.observe(draw(9, 6, seed=1), draw(9, 4, seed=2))
    return module


def running(module: nn.Module) -> nn.Module:
    """In eval mode, with the statistics of one batch."""
    module(draw(20, 6, seed=3))
    return module.eval()


def of_norms() -> dict[str, nn.Module]:
    return {
        "BatchNorm": norms.BatchNorm(6),
        "L2": norms.L2(),
        "LayerNorm": norms.LayerNorm(6),
        "GroupNorm": norms.GroupNorm(3, 6),
        "ZCA": norms.ZCA(6),
        "ZCA training": norms.ZCA(6, momentum=0.5),
        "ZCA evaluation": running(norms.ZCA(6, momentum=0.5)),
        "Cholesky": norms.Cholesky(6),
        "Cholesky training": norms.Cholesky(6, momentum=0.5),
        "Cholesky evaluation": running(norms.Cholesky(6, momentum=0.5)),
    }


def of_projectors() -> dict[str, nn.Module]:
    return {
        "identity": projectors.identity(),
        "linear": projectors.linear(6, 4),
        "mlp": projectors.mlp(6, 4, hidden=5),
        "low_rank": projectors.low_rank(6, 4, rank=2),
        "orthogonal": projectors.orthogonal(6, 4),
        "ensemble": projectors.ensemble(6, 4),
        "Ridge": ridge(),
    }


def value_and_gradients(module: nn.Module, compiled: nn.Module) -> list[Tensor]:
    """Also those of the parameters, and the buffers after the call."""
    x = draw(9, 6).requires_grad_()
    y = compiled(x)
    (y * torch.linspace(-1, 2, y.numel()).reshape(y.shape)).sum().backward()
    grads = [part.grad for part in (x, *module.parameters())]
    assert all(grad is not None for grad in grads)
    return [y.detach(), *(grad for grad in grads if grad is not None), *module.buffers()]


def main() -> None:
    found: dict[str, float | str] = {}
    for name, module in {"norms": of_norms, "projectors": of_projectors}[sys.argv[1]]().items():
        torch.compiler.reset()
        other = copy.deepcopy(module)
        try:
            ours = value_and_gradients(other, torch.compile(other, backend="aot_eager", fullgraph=True))
        except Exception as error:  # whatever the compiler raises is what the test shall show
            found[name] = str(error).strip().splitlines()[0]
            continue
        theirs = value_and_gradients(module, module)
        found[name] = max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
