import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import reference
from limbeck import diagnostics, losses
from limbeck.errors import UserError

torch.set_num_threads(1)

WEIGHTS = {"task": 1.0, "feature": 0.5}


def along(*gradients: list[float]) -> tuple[nn.Parameter, list[Tensor]]:
    """A parameter, and a loss for each gradient that it is to have."""
    p = nn.Parameter(torch.zeros(len(gradients[0]), dtype=torch.float64))
    return p, [(p * torch.tensor(each, dtype=torch.float64)).sum() for each in gradients]


def flat(tensors: list[Tensor]) -> np.ndarray:
    return np.concatenate([each.double().numpy().ravel() for each in tensors])


@pytest.mark.parametrize("degrees", [0, 30, 60, 90, 120, 180])
def test_two_parts_of_known_length_and_angle(degrees: int) -> None:
    angle = math.radians(degrees)
    p, (task, feature) = along([3.0, 0.0, 0.0], [0.0, 2 * math.sin(angle), 2 * math.cos(angle)])
    task = task - 3 * p[0] + 3 * p[2]  # the task now pulls along the third
    found = diagnostics.gradient_balance({"task": task, "feature": feature}, WEIGHTS, [p])
    assert found.norms == pytest.approx({"task": 3, "feature": 2})
    assert found.weighted == pytest.approx({"task": 3, "feature": 1})
    assert found.cosines == pytest.approx({("task", "feature"): math.cos(angle)}, abs=1e-12)
    assert found.suggested == pytest.approx({"feature": 1.5})


def network() -> tuple[nn.Sequential, dict[str, Tensor]]:
    """A network with a batch norm, a part of all of it, a part of its first layer alone, and one of its last."""
    net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    x, z_t, target = torch.randn(16, 5), torch.randn(16, 8), torch.randint(3, (16,))
    hidden = net[:3](x)
    parts = {
        "task": functional.cross_entropy(net[3](hidden), target),
        "feature": losses.log_sum(net[0](x), z_t),
        "logit": net[3](hidden.detach()).square().mean(),
    }
    return net, parts


def test_a_network_s_balance_equals_numpys_from_ordinary_backward_passes() -> None:
    net, parts = network()
    weights = {"task": 0.7, "feature": 2.0, "logit": 3.0}
    found = diagnostics.gradient_balance(parts, weights, list(net.parameters()))
    gradients: dict[str, np.ndarray] = {}
    for name, part in parts.items():
        net.zero_grad()
        part.backward(retain_graph=True)
        gradients[name] = flat([torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()])
    norms = {name: float(np.linalg.norm(each)) for name, each in gradients.items()}
    assert found.norms == pytest.approx(norms, rel=1e-5)
    assert found.weighted == pytest.approx({name: weights[name] * norm for name, norm in norms.items()}, rel=1e-5)
    for (one, other), cosine in found.cosines.items():
        expected = gradients[one] @ gradients[other] / (norms[one] * norms[other])
        assert cosine == pytest.approx(float(expected), rel=1e-5, abs=1e-7)
    assert list(found.cosines) == [("task", "feature"), ("task", "logit"), ("feature", "logit")]
    assert abs(found.cosines["task", "feature"]) > 1e-4  # the comparison is of something
    assert found.cosines["feature", "logit"] == 0  # they share no parameter


def test_with_the_suggested_weights_all_parts_pull_as_hard_as_the_task() -> None:
    net, parts = network()
    first = diagnostics.gradient_balance(parts, {"task": 0.7, "feature": 2, "logit": 3}, list(net.parameters()))
    second = diagnostics.gradient_balance(parts, {"task": 0.7, **first.suggested}, list(net.parameters()))
    assert set(first.suggested) == {"feature", "logit"}
    assert list(second.weighted.values()) == pytest.approx([0.7 * first.norms["task"]] * 3)
    assert second.suggested == pytest.approx(first.suggested)


def test_nothing_is_changed_and_the_loss_can_still_be_trained_on() -> None:
    net, parts = network()
    net[0].weight.grad = torch.ones_like(net[0].weight)
    before = {name: each.clone() for name, each in net.state_dict().items()}
    diagnostics.gradient_balance(parts, dict.fromkeys(parts, 1.0), list(net.parameters()))
    assert all(torch.equal(each, before[name]) for name, each in net.state_dict().items())
    assert torch.equal(net[0].weight.grad, torch.ones_like(net[0].weight))
    assert net[3].weight.grad is None
    sum(parts.values()).backward()
    assert net[3].weight.grad is not None


def test_a_part_without_gradient_has_no_angle_and_no_suggestion() -> None:
    p, (task,) = along([3.0, 4.0])
    parts = {"task": task, "constant": torch.tensor(7.0), "elsewhere": nn.Parameter(torch.ones(())) * 2}
    found = diagnostics.gradient_balance(parts, dict.fromkeys(parts, 1.0), [p])
    assert found.norms == {"task": 5, "constant": 0, "elsewhere": 0}
    assert set(found.cosines.values()) == {0.0}
    assert found.suggested == {}


def test_without_a_task_there_is_nothing_to_suggest() -> None:
    p, (one, other) = along([1.0, 0.0], [1.0, 1.0])
    found = diagnostics.gradient_balance({"a": one, "b": other}, {"a": 1, "b": 1}, [p])
    assert found.suggested == {}
    assert found.cosines["a", "b"] == pytest.approx(math.sqrt(0.5))
    switched_off = diagnostics.gradient_balance({"task": one, "b": other}, {"task": 0, "b": 1}, [p])
    assert switched_off.suggested == {}


def test_frozen_parameters_are_left_out_and_half_precision_keeps_its_digits() -> None:
    p = nn.Parameter(torch.zeros(20000, dtype=torch.bfloat16))
    frozen = nn.Parameter(torch.zeros(3), requires_grad=False)
    found = diagnostics.gradient_balance({"task": (p * 0.5).sum()}, {"task": 1.0}, [frozen, p])
    assert found.norms["task"] == pytest.approx(0.5 * math.sqrt(20000), rel=1e-6)


# Errors, by what they say


def one() -> Tensor:
    return nn.Parameter(torch.ones(())) * 1


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "no parts": (
        lambda: diagnostics.gradient_balance({}, {}, [nn.Parameter(torch.ones(2))]),
        "gradient_balance: 0 parts, 1 parameters; expected at least one each",
    ),
    "frozen": (
        lambda: diagnostics.gradient_balance(
            {"task": one()}, {"task": 1}, [nn.Parameter(torch.ones(2), requires_grad=False)]
        ),
        "gradient_balance: 1 parts, 0 parameters; expected at least one each",
    ),
    "no scalar": (
        lambda: diagnostics.gradient_balance({"task": torch.ones(3)}, {"task": 1}, [nn.Parameter(torch.ones(2))]),
        'gradient_balance: part "task" is (3,); expected a scalar',
    ),
    "no weight": (
        lambda: diagnostics.gradient_balance({"feature": one()}, {"features": 1}, [nn.Parameter(torch.ones(2))]),
        'gradient_balance: part "feature" has no weight (did you mean "features"?)',
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_say_what_was_found(name: str) -> None:
    call, message = BAD[name]
    with reference.as_a_user(), pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        call()
