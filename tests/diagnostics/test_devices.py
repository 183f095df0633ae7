"""Every measure on a GPU, under autocast: the numbers of the CPU, and nothing left behind on another device."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck import diagnostics, losses, projectors

torch.set_num_threads(1)

X, Y = torch.randn(2, 40, 12, generator=torch.Generator().manual_seed(0))
GRIDS = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
TARGET = torch.arange(40) % 12
LOSS = functools.partial(losses.log_correlation, alpha=4)

MEASURES: dict[str, Callable[[Callable[[Any], Any]], object]] = {
    "singular_values": lambda to: diagnostics.singular_values(to(X)),
    "column_normalized": lambda to: diagnostics.column_normalized(to(X)),
    "effective_rank": lambda to: diagnostics.effective_rank(to(X[0].abs())),
    "condition": lambda to: diagnostics.condition(to(X[0].abs())),
    "local_jacobians": lambda to: diagnostics.local_jacobians(to(mlp()), to(X[:3])),
    "fixed_point_distances": lambda to: diagnostics.fixed_point_distances(
        to(X[:12]), to(diagnostics.self_relation(X)), to(diagnostics.cross_relation(X, Y)), ridge=1.0
    ),
    "pull": lambda to: diagnostics.pull(to(X), to(Y), weight_decay=0.1),
    "initial_share": lambda to: diagnostics.initial_share(to(X + Y), to(Y)),
    "cka": lambda to: diagnostics.cka(to(X + Y), to(Y)),
    "off_diagonal_energy": lambda to: diagnostics.off_diagonal_energy(to(X)),
    "input_output_correlation": lambda to: diagnostics.input_output_correlation(to(X), to(X + Y)),
    "channel_correlations": lambda to: diagnostics.channel_correlations(to(X), to(X + Y)),
    "gradient_shares": lambda to: diagnostics.gradient_shares(to(X[0].tanh()), LOSS),
    "dead_channels": lambda to: diagnostics.dead_channels(to(X * (torch.arange(12) > 3))),
    "top1_agreement": lambda to: diagnostics.top1_agreement(to(X), to(X + Y)),
    "expected_calibration_error": lambda to: diagnostics.expected_calibration_error(to(X), to(TARGET)),
    "mean_confidence": lambda to: diagnostics.mean_confidence(to(X)),
    "gradient_balance": lambda to: tuple(balance(to).norms.values()) + tuple(balance(to).cosines.values()),
    "translation_error": lambda to: diagnostics.translation_error(to(GRIDS), to(GRIDS.roll(1, 2)), (1, 1)),
}


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return projectors.mlp(12, 9, hidden=6)


def balance(to: Callable[[Any], Any]) -> diagnostics.Balance:
    net, x = to(mlp()), to(X)
    parts = {"task": net(x).square().mean(), "feature": net[0](x).exp().mean()}
    return diagnostics.gradient_balance(parts, {"task": 1.0, "feature": 1.0}, list(net.parameters()))


def flat(found: object) -> list[float]:
    if isinstance(found, Tensor):
        return found.double().cpu().flatten().tolist()
    if isinstance(found, tuple):
        return [value for each in found for value in flat(each)]
    assert isinstance(found, float)
    return [found]


@pytest.mark.gpu
@pytest.mark.parametrize("name", MEASURES)
def test_a_gpu_gives_the_numbers_of_the_cpu(name: str) -> None:
    expected = flat(MEASURES[name](lambda each: each))
    assert flat(MEASURES[name](lambda each: each.to("cuda"))) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    if name != "gradient_balance":  # whose losses are computed here, under autocast in half precision
        with torch.autocast("cuda", dtype=torch.bfloat16):
            assert flat(MEASURES[name](lambda each: each.to("cuda"))) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", MEASURES)
def test_autocast_and_switched_off_gradients_change_no_number(name: str) -> None:
    expected = flat(MEASURES[name](lambda each: each))
    assert expected
    if name != "gradient_balance":  # which needs the graph of its losses
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            assert flat(MEASURES[name](lambda each: each)) == expected
