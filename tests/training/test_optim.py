import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import tiny
from limbeck import Distiller
from limbeck.errors import UserError
from limbeck.tasks import Classification
from limbeck.training import optim
from limbeck.training.fit import set_rate


def test_both_optimizers_hold_everything_trainable_and_nothing_else() -> None:
    distiller = tiny.distiller()
    expected = {id(p) for p in distiller.trainable_parameters().values()}
    for optimizer in (optim.sgd(distiller), optim.adamw(distiller)):
        held = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert set(held) == expected
        assert len(held) == len(expected)
        optim.check_optimizer(distiller, optimizer)


def test_adamw_decays_matrices_and_projectors_only() -> None:
    distiller = tiny.distiller()
    decayed, exempt = optim.adamw(distiller, weight_decay=0.05).param_groups
    assert decayed["weight_decay"] == 0.05
    assert exempt["weight_decay"] == 0.0
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert all(p.ndim == 1 for p in exempt["params"])
    assert any(p is distiller.terms["feature"].projector.weight for p in decayed["params"])


@pytest.mark.parametrize("make", [optim.sgd, optim.adamw])
def test_fused_steps_are_those_of_the_loop_over_parameters(make: Callable[..., Optimizer]) -> None:
    subject, twin = tiny.distiller(), tiny.distiller()
    fused, loop = make(subject, lr=0.1), make(twin, lr=0.1)
    assert all(group["fused"] for group in fused.param_groups)
    for group in loop.param_groups:
        group["fused"], group["foreach"] = False, False
    for _ in range(5):
        for a, b in zip(subject.trainable_parameters().values(), twin.trainable_parameters().values(), strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        fused.step()
        loop.step()
    for a, b in zip(subject.trainable_parameters().values(), twin.trainable_parameters().values(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("make", [functools.partial(optim.sgd, scaled=True), optim.adamw])
def test_a_step_that_overflows_leaves_no_trace(make: Callable[..., Optimizer]) -> None:
    """What torch's fused SGD does not hold."""
    distiller = tiny.distiller()
    optimizer = make(distiller, lr=0.1)
    optim.check_scaled(optimizer)
    scaler = torch.amp.GradScaler("cpu")
    before = {name: p.detach().clone() for name, p in distiller.trainable_parameters().items()}
    for p in distiller.trainable_parameters().values():
        p.grad = torch.full_like(p, math.inf)
    scaler.scale(torch.ones(()))
    scaler.step(optimizer)
    scaler.update()
    assert tiny.same_bytes(before, {name: p.detach() for name, p in distiller.trainable_parameters().items()})
    for p in distiller.trainable_parameters().values():
        p.grad = torch.ones_like(p)
    scaler.step(optimizer)
    optim.check_finite(distiller)


def test_fused_sgd_is_refused_where_the_loss_is_scaled() -> None:
    with pytest.raises(UserError, match="fused SGD does not skip"):
        optim.check_scaled(optim.sgd(tiny.distiller()))


def test_where_there_is_no_fused_kernel_torch_chooses() -> None:
    assert optim.sgd(tiny.distiller().to("meta")).param_groups[0]["fused"] is None


def test_an_optimizer_without_the_projector_is_refused_by_name() -> None:
    distiller = tiny.distiller()
    forgetful = torch.optim.SGD(distiller.student.parameters(), lr=0.1)
    with pytest.raises(UserError, match=r"terms\.feature\.projector\.weight"):
        optim.check_optimizer(distiller, forgetful)
    with pytest.raises(UserError, match=r"and \d more"):
        optim.check_optimizer(distiller, torch.optim.SGD(distiller.term_modules.parameters(), lr=0.1))


def test_a_parameter_without_gradient_is_refused_by_name() -> None:
    distiller = tiny.distiller()
    distiller(tiny.Batch(*tiny.images(8))).loss.backward()
    optim.check_gradients(distiller)
    distiller.student.fc.bias.grad = None
    with pytest.raises(UserError, match=r"no gradient reaches student\.fc\.bias"):
        optim.check_gradients(distiller)


def test_a_parameter_that_is_not_finite_is_refused_by_name() -> None:
    distiller = tiny.distiller()
    optim.check_finite(distiller)
    with torch.no_grad():
        distiller.student.fc.bias[0] = math.inf
    with pytest.raises(UserError, match=r"student\.fc\.bias"):
        optim.check_finite(distiller)


def test_cosine() -> None:
    rate = optim.cosine_decay(10, warmup=2, floor=0.1)
    assert rate(0) == pytest.approx(0.01)
    assert rate(1) == pytest.approx(0.505)
    assert rate(2) == 1.0
    assert rate(6) == pytest.approx(0.55)
    assert rate(10) == rate(11) == pytest.approx(0.1)
    falling = [rate(2 + step / 10) for step in range(81)]
    assert falling == sorted(falling, reverse=True)
    assert optim.cosine_decay(10)(0) == 1.0


def test_step_decay() -> None:
    rate = optim.step_decay([20, 10], gamma=0.5, warmup=1)
    assert [rate(done) for done in (0.0, 1.0, 9.99, 10.0, 20.0, 99.0)] == pytest.approx([0.01, 1, 1, 0.5, 0.25, 0.25])


def test_set_rate_scales_each_group_from_its_own_first_rate() -> None:
    a, b = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 0.1}])
    for factor in (0.5, 0.5, 1.0, 0.2):  # no drift
        set_rate(optimizer, factor)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([factor, 0.1 * factor])
    # A checkpoint carries the first rate on, so that a resumed schedule is the same.
    other = torch.optim.SGD([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 0.1}])
    other.load_state_dict(optimizer.state_dict())
    set_rate(other, 1.0)
    assert [group["lr"] for group in other.param_groups] == pytest.approx([1.0, 0.1])


class Skipped(nn.Module):
    """Half of the training steps do not run its second layer, as LayerDrop has it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self.first(x)
        return x if self.training and self.calls % 2 else self.second(x)


def test_layers_that_are_dropped_at_random_are_not_refused() -> None:
    distiller = Distiller(Skipped(), None, Classification())
    batch = (torch.randn(4, 4), torch.randint(4, (4,)))
    distiller(batch).loss.backward()
    with pytest.raises(UserError, match=r"no gradient reaches student\.second\.weight"):
        optim.check_gradients(distiller)
    optim.check_gradients(distiller, lambda: distiller(batch).loss)
    distiller.student.third = nn.Linear(4, 4)
    with pytest.raises(UserError, match=r"no gradient reaches student\.third\.weight, student\.third\.bias;"):
        optim.check_gradients(distiller, lambda: distiller(batch).loss)
