"""Every form of a feature term against the loss written out, for all projectors, norms and losses that it can be of."""

import copy
import functools
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reference
from limbeck import FeatureTerm, losses, norms, projectors
from limbeck.errors import UserError
from limbeck.features import pooling
from limbeck.projectors import Ridge
from limbeck.terms import Loss, LossForm, chunked, feature
from reference_terms import captured

N, D_S, D_T = 9, 3, 4  # maps of 2 x 2 positions, so 36 rows

Build = Callable[[int, int], nn.Module]
PROJECTORS: dict[str, Build] = {
    "linear": projectors.linear,
    "linear with a bias": functools.partial(projectors.linear, bias=True),
    "mlp": functools.partial(projectors.mlp, hidden=5),
    "orthogonal": projectors.orthogonal,
    "low_rank": functools.partial(projectors.low_rank, rank=2),
    "identity": lambda d_s, d_t: projectors.identity(),
    "ensemble": projectors.ensemble,
    "Ridge": Ridge,
}
ENDS_IN_LINEAR = ("linear", "linear with a bias", "mlp", "orthogonal", "low_rank")

# For the student's side, then the teacher's; of the width that both have there.
NORMS: dict[str, tuple[Callable[[int], nn.Module], Callable[[int], nn.Module]]] = {
    "none": (nn.Identity, nn.Identity),
    "L2": (lambda d: norms.L2(), lambda d: norms.L2()),
    "batch": (norms.BatchNorm, functools.partial(norms.BatchNorm, eps=1e-3)),
    "batch, student only": (norms.BatchNorm, nn.Identity),
    "batch, teacher only": (nn.Identity, norms.BatchNorm),
    "batch and L2": (norms.BatchNorm, lambda d: norms.L2()),
    "group": (lambda d: norms.GroupNorm(1, d), lambda d: norms.GroupNorm(1, d)),
    "layer": (norms.LayerNorm, norms.LayerNorm),
    "layer, teacher only": (nn.Identity, norms.LayerNorm),
    "ZCA": (norms.ZCA, norms.ZCA),
    "Cholesky": (norms.Cholesky, norms.Cholesky),
    "batch and ZCA": (norms.BatchNorm, norms.ZCA),
}
ROW_BY_ROW_OR_BATCH = [name for name in NORMS if "ZCA" not in name and name != "Cholesky"]

ELEMENTWISE: dict[str, Loss] = {
    "squared_error": losses.squared_error,
    "mean_squared_error": losses.mean_squared_error,
    "l1": losses.l1,
    "smooth_l1": functools.partial(losses.smooth_l1, beta=0.7),
    "cosine": losses.cosine,
    "log_sum": losses.log_sum,
    "log_sum 1.5": functools.partial(losses.log_sum, alpha=1.5),
    "feature_kl": functools.partial(losses.feature_kl, temperature=2.0),
    "gaussian_wasserstein": losses.gaussian_wasserstein,
}
CORRELATION: dict[str, Callable[[Tensor], Tensor]] = {
    "log_correlation": functools.partial(losses.log_correlation, alpha=3.0),
    "correlation_power": functools.partial(losses.correlation_power, power=2.0),
}
IN_BLOCKS = ("squared_error", "mean_squared_error", "l1", "smooth_l1", "cosine", "log_sum", "log_sum 1.5")


def applies(projector: str, norm: str, loss: str, *, inverted: bool = False) -> set[LossForm]:
    """What the documentation says."""
    found = {LossForm.DIRECT}
    if projector in ENDS_IN_LINEAR and norm == "batch" and loss in ("mean_squared_error", *CORRELATION):
        found.add(LossForm.MOMENTS)
    if projector in ENDS_IN_LINEAR and norm in ROW_BY_ROW_OR_BATCH and loss in IN_BLOCKS and not inverted:
        found.add(LossForm.CHUNKED)
    return found


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def width_of(projector: str) -> int:
    return D_T if projector == "identity" else D_S


def build(projector: str, norm: str, loss: str, *, inverted: bool = False, **more: Any) -> FeatureTerm:
    """A dense term in float64."""
    torch.manual_seed(0)
    d_s = width_of(projector)
    source, target = (D_T, d_s) if inverted else (d_s, D_T)
    student_norm, teacher_norm = (make(target) for make in NORMS[norm])
    return FeatureTerm(
        "z",
        "z",
        projector=PROJECTORS[projector](source, target),
        student_norm=student_norm,
        teacher_norm=teacher_norm,
        loss=ELEMENTWISE.get(loss),
        correlation_loss=CORRELATION.get(loss),
        student_pool=pooling.spatial_positions,
        teacher_pool=pooling.spatial_positions,
        inverted=inverted,
        **more,
    ).double()


def maps(projector: str) -> tuple[Tensor, Tensor]:
    return draw(N, width_of(projector), 2, 2) + 1, 2 * draw(N, D_T, 2, 2, seed=1) - 1


def written_out(term: FeatureTerm, z_s: Tensor, z_t: Tensor) -> Tensor:
    """The formula of the class, and nothing else; of Ridge with the weight that the term has left."""
    a, t = (z.flatten(2).transpose(1, 2) for z in (z_s, z_t))
    if term.inverted:
        t = term.projector(term.input_norm(t))
    else:
        a = term.projector(term.input_norm(a))
    a, t = term.student_norm(a), term.teacher_norm(t)
    if term.correlation_loss is not None:
        return term.correlation_loss((a * t).flatten(0, -2).mean(0))
    assert term.loss is not None
    return term.loss(a, t)


Compute = Callable[[FeatureTerm, Tensor, Tensor], Tensor]


def of_term(term: FeatureTerm, z_s: Tensor, z_t: Tensor) -> Tensor:
    return term(captured(z_s), captured(z_t))


def value_and_gradients(compute: Compute, term: FeatureTerm, z_s: Tensor, z_t: Tensor) -> dict[str, Tensor]:
    """The gradients of a multiple of the loss: its factor reaches them too."""
    term.zero_grad()
    z_s = z_s.clone().requires_grad_()
    value = compute(term, z_s, z_t)
    (3 * value).backward()
    assert z_s.grad is not None
    found = {"value": value.detach(), "z_s": z_s.grad}
    for name, parameter in term.named_parameters():
        assert parameter.grad is not None, name
        found[name] = parameter.grad.clone()
    return found


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], what: object) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(1.0, float(value.abs().max()))
        assert float((found[name] - value).abs().max()) < 1e-10 * scale, f"{what}: {name}"


def pairs(side: int, chosen: Iterable[str] = NORMS) -> list[tuple[str, str]]:
    """Projectors and norms; not a bias that is dead, behind batch norm on the projector's side (0, or inverted 1)."""
    return [
        (projector, norm)
        for projector in PROJECTORS
        for norm in chosen
        if not (projector == "linear with a bias" and isinstance(NORMS[norm][side](D_T), norms.BatchNorm))
    ]


def combined(norm: str) -> list[str]:
    """The losses that a term with this norm can have."""
    return [*ELEMENTWISE, *(CORRELATION if norm == "batch" else ())]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "BLOCK_ELEMENTS_CPU", 11 * D_T)  # two samples of four rows to a block, and one left


@pytest.mark.parametrize(("projector", "norm"), pairs(0))
def test_every_form_that_applies_is_the_loss_written_out(projector: str, norm: str) -> None:
    z_s, z_t = maps(projector)
    for loss in combined(norm):
        expected = None
        for form in applies(projector, norm, loss):
            term = build(projector, norm, loss, form=form)
            found = value_and_gradients(of_term, term, z_s, z_t)
            assert term.form_used is form
            expected = expected or value_and_gradients(written_out, term, z_s, z_t)
            assert_equal(found, expected, (loss, form))
            assert found["z_s"].abs().max() > 1e-6, (loss, form)


@pytest.mark.parametrize(("projector", "norm"), pairs(0))
def test_a_form_that_does_not_apply_is_refused(projector: str, norm: str) -> None:
    z_s, z_t = maps(projector)
    for loss in combined(norm):
        for form in set(LossForm) - applies(projector, norm, loss):
            term = build(projector, norm, loss, form=form)
            with pytest.raises(UserError) as raised:
                of_term(term, z_s, z_t)
            message = str(raised.value)
            assert message.startswith(f"the {form.value} form does not apply to z -> z, loss="), loss
            assert "\n" not in message


@pytest.mark.parametrize(("projector", "norm"), pairs(1))
def test_inverted(projector: str, norm: str) -> None:
    """The teacher's feature is projected; the student's gradient comes through the other side."""
    z_s, z_t = maps(projector)
    for loss in combined(norm):
        expected = None
        possible = applies(projector, norm, loss, inverted=True)
        for form in possible:
            term = build(projector, norm, loss, inverted=True, form=form)
            found = value_and_gradients(of_term, term, z_s, z_t)
            expected = expected or value_and_gradients(written_out, term, z_s, z_t)
            assert_equal(found, expected, (loss, form))
        for form in set(LossForm) - possible:
            with pytest.raises(UserError, match=f"the {form.value} form does not apply"):
                of_term(build(projector, norm, loss, inverted=True, form=form), z_s, z_t)


@pytest.mark.parametrize("whitening", [norms.ZCA, norms.Cholesky])
@pytest.mark.parametrize(("projector", "norm"), pairs(0, ["none", "batch", "L2", "ZCA"]))
@pytest.mark.parametrize("inverted", [False, True])
def test_a_norm_in_front_of_the_projector(
    whitening: Callable[[int], nn.Module], projector: str, norm: str, inverted: bool
) -> None:
    z_s, z_t = maps(projector)
    for loss in ["mean_squared_error", "log_sum", *(CORRELATION if norm == "batch" else ())]:
        expected = None
        for form in applies(projector, norm, loss, inverted=inverted):
            in_front = whitening(D_T if inverted else width_of(projector))
            term = build(projector, norm, loss, inverted=inverted, form=form, input_norm=in_front)
            found = value_and_gradients(of_term, term, z_s, z_t)
            assert term.form_used is form
            expected = expected or value_and_gradients(written_out, term, z_s, z_t)
            assert_equal(found, expected, (loss, form))


def term_of_vectors(projector: nn.Module, norm: str, loss: str) -> FeatureTerm:
    student_norm, teacher_norm = (make(D_T) for make in NORMS[norm])
    return FeatureTerm(
        "z",
        "z",
        projector=projector,
        student_norm=student_norm,
        teacher_norm=teacher_norm,
        loss=ELEMENTWISE.get(loss),
        correlation_loss=CORRELATION.get(loss),
    ).double()


def used(term: FeatureTerm, n: int) -> LossForm:
    of_term(term, draw(n, D_S), draw(n, D_T, seed=1))
    return term.form_used


@pytest.mark.parametrize("loss", ["mean_squared_error", "log_correlation", "correlation_power"])
@pytest.mark.parametrize(("projector", "width"), [("linear", D_S), ("mlp", 5), ("orthogonal", D_S), ("low_rank", 2)])
def test_moments_are_taken_from_twice_as_many_rows_as_channels_on(projector: str, width: int, loss: str) -> None:
    """The channels are those in front of the last layer."""
    term = term_of_vectors(PROJECTORS[projector](D_S, D_T), "batch", loss)
    assert used(term, 2 * width) is LossForm.DIRECT
    assert used(term, 2 * width + 1) is LossForm.MOMENTS


def test_blocks_are_taken_for_many_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature, "CHUNKED_ELEMENTS", 20 * D_T)
    for norm in ROW_BY_ROW_OR_BATCH:
        term = term_of_vectors(projectors.linear(D_S, D_T), norm, "log_sum")
        assert used(term, 20) is LossForm.DIRECT
        assert used(term, 21) is LossForm.CHUNKED
    squared = term_of_vectors(projectors.linear(D_S, D_T), "batch", "mean_squared_error")
    assert used(squared, 21) is LossForm.MOMENTS  # both apply
    for norm, loss in (("ZCA", "log_sum"), ("none", "feature_kl")):
        assert used(term_of_vectors(projectors.linear(D_S, D_T), norm, loss), 21) is LossForm.DIRECT
    assert used(term_of_vectors(projectors.ensemble(D_S, D_T), "none", "log_sum"), 21) is LossForm.DIRECT


def test_a_teacher_that_wants_a_gradient_is_not_taken_in_blocks() -> None:
    term = build("linear", "none", "log_sum", form=LossForm.CHUNKED)
    z_s, z_t = maps("linear")
    with pytest.raises(UserError, match="chunked form does not apply"):
        of_term(term, z_s, z_t.requires_grad_())
    term.form = None
    of_term(term, z_s, z_t).backward()
    assert z_t.grad is not None


def test_ridge_observes_in_training_only() -> None:
    term = build("Ridge", "batch", "mean_squared_error")
    assert isinstance(term.projector, Ridge)
    z_s, z_t = maps("Ridge")
    of_term(term, z_s, z_t)
    y = term.teacher_norm(z_t.flatten(2).transpose(1, 2))
    alone = Ridge(D_S, D_T).double()
    alone.observe(z_s.flatten(2).transpose(1, 2), y)
    assert torch.equal(term.projector.weight, alone.weight)
    before = copy.deepcopy(term.state_dict())
    term.eval()
    other = of_term(term, z_s.flip(0) * 2, z_t)
    assert all(torch.equal(before[name], value) for name, value in term.state_dict().items())
    assert_equal({"v": other}, {"v": written_out(term, z_s.flip(0) * 2, z_t)}, "eval")
    of_term(term.train(), z_s.flip(0) * 2, z_t)
    assert not torch.equal(before["projector.weight"], term.projector.weight)
    with pytest.raises(UserError, match="nothing to project with yet"):
        of_term(build("Ridge", "batch", "mean_squared_error").eval(), z_s, z_t)


@pytest.mark.parametrize(
    ("inverted", "form"), [*((False, form) for form in (None, *LossForm)), (True, None), (True, LossForm.MOMENTS)]
)
def test_unequal_widths_are_an_error_in_each_form(inverted: bool, form: LossForm | None) -> None:
    term = build("linear", "batch", "mean_squared_error", inverted=inverted, form=form)
    z_s, z_t = draw(N, D_S + inverted, 2, 2), draw(N, D_T + (not inverted), 2, 2)
    with pytest.raises(UserError) as raised:
        of_term(term, z_s, z_t)
    projected = f"(9, 4, {D_S if inverted else D_T})"
    other = f"(9, 4, {D_S + 1 if inverted else D_T + 1})"
    first, second = ("teacher", "student") if inverted else ("student", "teacher")
    message = f'after the projector, "z" of the {first} is {projected} and "z" of the {second} is {other}; '
    assert str(raised.value) == message + "expected equal shapes"


@pytest.mark.parametrize("form", [None, *LossForm])
def test_unequal_rows_are_an_error_in_each_form(form: LossForm | None) -> None:
    term = build("linear", "batch", "mean_squared_error", form=form)
    with pytest.raises(UserError, match=r"is \(9, 4, 4\) and .* is \(9, 6, 4\); expected equal shapes"):
        of_term(term, draw(N, D_S, 2, 2), draw(N, D_T, 2, 3))


@pytest.mark.parametrize("form", LossForm)
def test_a_batch_norm_of_another_width_is_an_error_in_each_form(form: LossForm) -> None:
    term = build("linear", "batch", "mean_squared_error", form=form)
    for side in ("student_norm", "teacher_norm"):
        other = copy.deepcopy(term)
        setattr(other, side, norms.BatchNorm(D_T + 1))
        with reference.as_a_user(), pytest.raises(UserError, match=r"BatchNorm: got \(9, 4, 4\); expected \(n, 5\)"):
            of_term(other, *maps("linear"))


@pytest.mark.parametrize(
    ("form", "norm"),
    [*((form, "batch") for form in LossForm), (LossForm.DIRECT, "none"), (LossForm.CHUNKED, "none")],
)
def test_no_rows_are_an_error_in_each_form(form: LossForm, norm: str) -> None:
    for loss in ("mean_squared_error", *(() if form is LossForm.MOMENTS else ("log_sum", "squared_error"))):
        with reference.as_a_user(), pytest.raises(UserError, match=r"expected .*at least one|need at least 2"):
            of_term(build("linear", norm, loss, form=form), draw(0, D_S, 2, 2), draw(0, D_T, 2, 2))


@pytest.mark.parametrize("form", LossForm)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradient_the_value_is_the_same(form: LossForm, mode: Callable[[], Any]) -> None:
    for loss in ("mean_squared_error", *(() if form is LossForm.MOMENTS else ("log_sum", "squared_error"))):
        term = build("mlp", "batch", loss, form=form)
        expected = of_term(term, *maps("mlp")).detach()
        readings = dict(term.readings)
        with mode():
            value = of_term(term, *maps("mlp"))
        assert not value.requires_grad
        assert_equal({"value": value} | term.readings, {"value": expected} | readings, loss)


@pytest.mark.parametrize("form", LossForm)
@pytest.mark.parametrize("scale", [1e-3, 1e12, 1e17])
def test_large_features_in_float32(form: LossForm, scale: float) -> None:
    """Whose variance is a float32 number, and the product of two variances none."""
    z_s, z_t = (scale * z for z in maps("linear"))
    expected = of_term(build("linear", "batch", "mean_squared_error"), z_s, z_t).item()
    term = build("linear", "batch", "mean_squared_error", form=form).float()
    x = z_s.float().requires_grad_()
    value = of_term(term, x, z_t.float())
    value.backward()
    assert value.item() == pytest.approx(expected, rel=1e-4)
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(("projector", "norm"), pairs(0, ["none", "batch", "L2", "ZCA"]))
def test_bf16_autocast_gives_a_float32_loss_and_finite_gradients(projector: str, norm: str) -> None:
    z_s, z_t = (z.bfloat16() for z in maps(projector))
    for loss in combined(norm):
        for form in applies(projector, norm, loss):
            term = build(projector, norm, loss, form=form).float()
            x = z_s.clone().requires_grad_()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                value = of_term(term, x, z_t)
            value.backward()
            assert value.dtype == torch.float32, (loss, form)
            assert value.isfinite(), (loss, form)
            grads = [x.grad, *(p.grad for p in term.parameters())]
            assert all(grad is not None and grad.isfinite().all() for grad in grads), (loss, form)
            # bf16 has three digits; the exact value is within a few percent.
            exact = of_term(build(projector, norm, loss, form=form), z_s.double(), z_t.double())
            assert value.item() == pytest.approx(exact.item(), rel=0.05, abs=0.05), (loss, form)


@pytest.mark.parametrize(("projector", "norm"), pairs(0, ["none", "batch", "L2"]))
def test_float16_under_a_loss_scale_gives_the_gradients_of_float64(projector: str, norm: str) -> None:
    """And no form needs a smaller scale than the direct one. A GradScaler starts at 2^16, which is no float16."""
    z_s, z_t = (z.detach().half() for z in maps(projector))

    def gradients(loss: str, form: LossForm, dtype: torch.dtype, scale: float) -> Tensor:
        term = build(projector, norm, loss, form=form)
        term = term.float() if dtype == torch.float16 else term
        x = z_s.clone().to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype == torch.float16):
            value = of_term(term, x, z_t.to(dtype))
        (value * scale).backward()
        grads = [p.grad.double().flatten() for p in (x, *term.parameters()) if p.grad is not None]
        return torch.cat(grads) / scale

    for loss in combined(norm):
        largest: dict[LossForm, float] = {}
        for form in applies(projector, norm, loss):
            exact = gradients(loss, form, torch.float64, 1.0)
            scale, ours = 2.0**16, gradients(loss, form, torch.float16, 2.0**16)
            while not ours.isfinite().all():
                scale /= 2
                ours = gradients(loss, form, torch.float16, scale)
            largest[form] = scale
            limit = 0.05 if form is LossForm.DIRECT else 0.01  # which projects in float16
            assert float((ours - exact).norm()) < limit * float(exact.norm()), (loss, form, scale)
        assert all(scale >= largest[LossForm.DIRECT] for scale in largest.values()), (loss, largest)


@pytest.mark.parametrize("form", [LossForm.DIRECT, LossForm.CHUNKED])
def test_a_projector_that_is_bf16_as_a_whole(form: LossForm) -> None:
    term = build("linear with a bias", "none", "smooth_l1", form=form).bfloat16()
    z_s, z_t = (z.bfloat16() for z in maps("linear"))
    value = of_term(term, z_s, z_t)
    value.backward()
    assert value.dtype == torch.float32
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in term.parameters())
