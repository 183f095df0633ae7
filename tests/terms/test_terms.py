import functools
import math

import pytest
import torch
from torch import Tensor, nn

import reference as slow
import reference_terms as twins
from limbeck import FeatureTerm, LabelledLogitTerm, LogitTerm, losses, norms, projectors
from limbeck.errors import UserError
from limbeck.features import pooling
from limbeck.terms import LossForm, Term
from reference_terms import captured

N, D_S, D_T = 7, 3, 5


def term(
    d_s: int = D_S,
    d_t: int = D_T,
    *,
    correlation: bool = False,
    dtype: torch.dtype = torch.float64,
    form: LossForm | None = None,
) -> FeatureTerm:
    return FeatureTerm(
        "z",
        "z",
        projector=projectors.linear(d_s, d_t).to(dtype),
        student_norm=norms.BatchNorm(d_t),
        teacher_norm=norms.BatchNorm(d_t),
        loss=None if correlation else losses.log_sum,
        correlation_loss=losses.log_correlation if correlation else None,
        form=form,
    )


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape_s", [(N, D_S), (N, D_S, 2, 3), (N, 4, D_S)])
@pytest.mark.parametrize("shape_t", [(N, D_T), (N, D_T, 2, 2), (N, 3, D_T)])
def test_feature_term_equals_its_loop_twin(shape_s: tuple[int, ...], shape_t: tuple[int, ...]) -> None:
    z_s, z_t = draw(*shape_s), draw(*shape_t, seed=1)
    elementwise, correlated = term(), term(correlation=True)
    value = elementwise(captured(z_s), captured(z_t)).item()
    assert value == pytest.approx(twins.feature_log_sum(z_s, z_t, elementwise.projector), rel=1e-10)
    expected = twins.log_mean(z_s, z_t, elementwise.projector)
    assert elementwise.readings["log_mean"].item() == pytest.approx(expected, rel=1e-9)
    value = correlated(captured(z_s), captured(z_t)).item()
    assert value == pytest.approx(twins.feature_log_correlation(z_s, z_t, correlated.projector), rel=1e-10)
    c = slow.correlation(*twins.sides(z_s, z_t, correlated.projector))
    assert correlated.readings["correlation"].item() == pytest.approx(sum(c) / D_T, rel=1e-9)


def test_positions_count_as_rows() -> None:
    z_s, z_t = draw(2, D_S, 2, 2), draw(2, D_T, 2, 2, seed=1)
    dense = term()
    dense.student_pool = dense.teacher_pool = pooling.spatial_positions
    flat_s, flat_t = z_s.permute(0, 2, 3, 1).reshape(-1, D_S), z_t.permute(0, 2, 3, 1).reshape(-1, D_T)
    expected = twins.feature_log_sum(flat_s, flat_t, dense.projector)
    assert dense(captured(z_s), captured(z_t)).item() == pytest.approx(expected, rel=1e-10)


def test_gradients_are_right_and_reach_student_and_projector_alone() -> None:
    for correlation in (False, True):
        subject = term(correlation=correlation)
        z_s, z_t = draw(N, D_S).requires_grad_(), draw(N, D_T, seed=1)

        def loss(z_s: Tensor, weight: Tensor, subject: FeatureTerm = subject, z_t: Tensor = z_t) -> Tensor:
            held = {"projector.weight": weight}
            return torch.func.functional_call(subject, held, (captured(z_s), captured(z_t)))

        assert torch.autograd.gradcheck(loss, (z_s, subject.projector.weight))
        subject(captured(z_s), captured(z_t)).backward()
        assert z_s.grad is not None
        assert all(p.grad is not None for p in subject.parameters())
        assert z_t.grad is None
        assert all(not reading.requires_grad for reading in subject.readings.values())


def test_no_norm_and_a_plain_loss() -> None:
    z_s, z_t = draw(N, D_S), draw(N, D_T, seed=1)
    plain = FeatureTerm("z", "z", projector=projectors.linear(D_S, D_T).double(), loss=losses.mean_squared_error)
    a = torch.tensor(slow.linear(slow.rows(z_s), plain.projector), dtype=torch.float64)
    assert plain(captured(z_s), captured(z_t)).item() == pytest.approx(slow.mean_squared_error(a, z_t), rel=1e-10)
    assert plain.readings == {}
    assert "loss=mean_squared_error" in str(plain)


@pytest.mark.parametrize("correlation", [False, True])
def test_readings_do_not_depend_on_batch_size_or_width(correlation: bool) -> None:
    z_s, z_t = draw(N, D_S), draw(N, D_T, seed=1)
    once, wider = term(correlation=correlation), term(D_S, 2 * D_T, correlation=correlation)
    with torch.no_grad():
        wider.projector.weight.copy_(once.projector.weight.repeat(2, 1))
    value = once(captured(z_s), captured(z_t)).item()
    expected = {name: reading.item() for name, reading in once.readings.items()}
    assert set(expected) == {"log_mean", "correlation"}
    # Twice the batch, then twice the channels: the loss may move, the readings may not.
    doubled = once(captured(z_s.repeat(2, 1)), captured(z_t.repeat(2, 1))).item()
    assert doubled - value == pytest.approx(0.0 if correlation else math.log(2))
    assert {k: v.item() for k, v in once.readings.items()} == pytest.approx(expected, rel=1e-9)
    widened = wider(captured(z_s), captured(z_t.repeat(1, 2))).item()
    assert widened - value == pytest.approx(math.log(2), abs=1e-5)
    assert {k: v.item() for k, v in wider.readings.items()} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("correlation", [False, True])
def test_the_correlation_reading_is_a_correlation(correlation: bool) -> None:
    subject = term(D_T, D_T, correlation=correlation)
    z = draw(N, D_T)
    for weight, limit in ((torch.eye(D_T), 1.0), (-torch.eye(D_T), -1.0)):
        with torch.no_grad():
            subject.projector.weight.copy_(weight)
        subject(captured(z), captured(z))
        assert abs(subject.readings["correlation"].item()) <= 1
        assert subject.readings["correlation"].item() == pytest.approx(limit, abs=1e-3)
    for seed in range(5):
        subject(captured(draw(N, D_T, seed=seed)), captured(draw(N, D_T, seed=seed + 9)))
        assert -1 <= subject.readings["correlation"].item() <= 1


def test_log_sum_behind_a_partial_is_still_recognised() -> None:
    subject = term()
    subject.loss = functools.partial(losses.log_sum, alpha=2.0)
    z_s, z_t = draw(N, D_S), draw(N, D_T, seed=1)
    a, t = twins.sides(z_s, z_t, subject.projector)
    assert subject(captured(z_s), captured(z_t)).item() == pytest.approx(slow.log_sum(a, t, alpha=2.0), rel=1e-10)
    assert "log_mean" in subject.readings
    assert "loss=log_sum" in str(subject)


@pytest.mark.parametrize("correlation", [False, True])
def test_bf16_autocast_gives_float32_norms_and_loss(correlation: bool) -> None:
    subject = term(correlation=correlation, dtype=torch.float32, form=LossForm.DIRECT)
    seen: list[torch.dtype] = []
    for norm in (subject.student_norm, subject.teacher_norm):
        norm.register_forward_hook(lambda _, inputs, output: seen.extend([inputs[0].dtype, output.dtype]))
    z_s = draw(N, D_S).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = subject(captured(z_s), captured(draw(N, D_T, seed=1).bfloat16()))
    assert value.dtype == torch.float32
    assert seen == [torch.float32] * 4
    value.backward()
    assert z_s.grad is not None
    assert torch.isfinite(z_s.grad).all()


@pytest.mark.parametrize("correlation", [False, True])
@pytest.mark.parametrize("z_s", [torch.zeros(N, D_S), torch.ones(N, D_S) * 3e4, draw(2, D_S).float()])
def test_it_is_finite_at_constant_features_and_in_a_short_batch(correlation: bool, z_s: Tensor) -> None:
    subject = term(correlation=correlation, dtype=torch.float32)
    z_s = z_s.requires_grad_()
    value = subject(captured(z_s), captured(draw(len(z_s), D_T).float()))
    value.backward()
    assert torch.isfinite(value)
    assert z_s.grad is not None
    assert torch.isfinite(z_s.grad).all()


def test_a_batch_of_one_is_a_clear_error() -> None:
    with pytest.raises(UserError, match="at least 2"):
        term()(captured(draw(1, D_S)), captured(draw(1, D_T)))


@pytest.mark.parametrize(
    "projector", [projectors.linear(D_S, D_T, bias=True), projectors.mlp(D_S, D_T, hidden=4, bias=True)]
)
def test_a_bias_that_batch_norm_cancels_is_refused(projector: nn.Module) -> None:
    both = {"student_norm": norms.BatchNorm(D_T), "teacher_norm": norms.BatchNorm(D_T)}
    with pytest.raises(UserError, match="bias=False"):
        FeatureTerm("z", "z", projector=projector, loss=losses.log_sum, **both)
    FeatureTerm("z", "z", projector=projector, loss=losses.mean_squared_error)  # without the norm it is alive


def test_every_parameter_of_a_deep_projector_gets_a_gradient() -> None:
    subject = term(dtype=torch.float32)
    subject.projector = projectors.mlp(D_S, D_T, hidden=4, depth=3)
    subject(captured(draw(N, D_S).float()), captured(draw(N, D_T).float())).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in subject.parameters())


def test_one_loss_and_the_norms_it_needs() -> None:
    projector = projectors.linear(D_S, D_T)
    batch = norms.BatchNorm(D_T)
    with pytest.raises(UserError, match="exactly one"):
        FeatureTerm("z", "z", projector=projector)
    with pytest.raises(UserError, match="exactly one"):
        FeatureTerm("z", "z", projector=projector, loss=losses.log_sum, correlation_loss=losses.log_correlation)
    with pytest.raises(UserError, match="needs BatchNorm"):
        FeatureTerm("z", "z", projector=projector, student_norm=batch, correlation_loss=losses.log_correlation)


def test_ridge_refuses_a_norm_that_would_count_each_batch_twice() -> None:
    for inverted in (False, True):
        side = "student_norm" if inverted else "teacher_norm"
        with pytest.raises(UserError, match="without running statistics"):
            FeatureTerm(
                "z",
                "z",
                projector=projectors.Ridge(D_S, D_T),
                loss=losses.mean_squared_error,
                inverted=inverted,
                **{side: norms.ZCA(D_T, momentum=0.1)},
            )
    FeatureTerm("z", "z", projector=projectors.Ridge(D_S, D_T), loss=losses.l1, teacher_norm=norms.ZCA(D_T))


def test_widths_that_do_not_fit_name_both_taps_and_shapes() -> None:
    subject = FeatureTerm("layer4", "stages.3", projector=projectors.linear(D_S, D_T), loss=losses.squared_error)
    student = captured(draw(N, D_S).float())._replace(features={"layer4": draw(N, D_S).float()})
    teacher = captured(draw(N, 9).float())._replace(features={"stages.3": draw(N, 9).float()})
    with pytest.raises(UserError) as raised:
        subject(student, teacher)
    for part in ('"layer4"', '"stages.3"', "(7, 5)", "(7, 9)"):
        assert part in str(raised.value)
    assert "\n" not in str(raised.value)


def test_logit_terms_equal_their_loop_twins() -> None:
    y_s, y_t = draw(N, 4).requires_grad_(), draw(N, 4, seed=1)
    labels = [0, 1, 2, 3, 0, 1, 2]
    student = captured(y_s, target=torch.tensor(labels))
    soft, decoupled = LogitTerm(), LabelledLogitTerm()
    assert isinstance(soft, Term)
    assert isinstance(decoupled, Term)
    assert isinstance(term(), Term)
    value = soft(student, captured(y_t))
    assert value.item() == pytest.approx(slow.kl_divergence(y_s, y_t), rel=1e-10)
    assert soft.readings["agreement"].item() == pytest.approx(twins.agreement(y_s, y_t))
    value.backward()
    assert y_s.grad is not None
    value = decoupled(student, captured(y_t))
    assert value.item() == pytest.approx(slow.decoupled_kl(y_s, y_t, labels), rel=1e-10)
    assert decoupled.readings["agreement"].item() == pytest.approx(twins.agreement(y_s, y_t))


def test_logit_terms_refuse_other_classes_and_missing_labels() -> None:
    student, teacher = captured(draw(N, 4)), captured(draw(N, 6))
    for logit in (LogitTerm(), LabelledLogitTerm()):
        with pytest.raises(UserError, match="student has 4 classes and the teacher 6"):
            logit(student._replace(target=torch.zeros(N, dtype=torch.int64)), teacher)
    with pytest.raises(UserError, match="needs labels"):
        LabelledLogitTerm()(student, captured(draw(N, 4)))


def test_logits_in_bf16_give_a_float32_loss() -> None:
    y = draw(N, 4).bfloat16()
    assert LogitTerm()(captured(y), captured(y)).dtype == torch.float32
