import functools
import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score
from torch import Tensor

import reference
from limbeck import diagnostics
from limbeck.errors import UserError

torch.set_num_threads(1)

close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def classes(n: int, k: int, *, seed: int = 0) -> Tensor:
    return torch.randint(k, (n,), generator=torch.Generator().manual_seed(seed))


def binary(confidence: Tensor) -> Tensor:
    """Logits of two classes, of which the first has this probability."""
    return torch.stack([confidence, 1 - confidence], 1).log()


def calibration_twin(logits: Tensor, target: Tensor, bins: int) -> float:
    """One image after the other into bins ``(b/B, (b+1)/B]``."""
    sums: dict[int, list[float]] = {}
    for row, label in zip(logits.double().tolist(), target.tolist(), strict=True):
        probabilities = [float(p) for p in scipy.special.softmax(row)]
        confidence = max(probabilities)
        index = next(b for b in range(bins) if confidence <= (b + 1) / bins or b == bins - 1)
        sums.setdefault(index, []).append((probabilities.index(confidence) == label) - confidence)
    return sum(abs(sum(gaps)) for gaps in sums.values()) / len(logits)


def test_top1_agreement_is_the_accuracy_of_one_against_the_other() -> None:
    student, teacher = noise(200, 5), noise(200, 5, seed=1)
    student[:80] = 3 * teacher[:80] - 7
    expected = accuracy_score(teacher.numpy().argmax(1), student.numpy().argmax(1))
    assert diagnostics.top1_agreement(student, teacher).item() == pytest.approx(expected)
    assert 0.4 <= expected < 0.7
    assert diagnostics.top1_agreement(teacher, teacher) == 1
    assert diagnostics.top1_agreement(torch.eye(3), torch.eye(3).roll(1, 0)) == 0


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 60), k=st.integers(1, 5), bins=st.integers(1, 20), seed=st.integers(0, 99))
def test_calibration_equals_its_loop_twin(n: int, k: int, bins: int, seed: int) -> None:
    logits, target = 2 * noise(n, k, seed=seed), classes(n, k, seed=seed)
    found = diagnostics.expected_calibration_error(logits, target, bins=bins)
    close(found.item(), calibration_twin(logits, target, bins), atol=1e-9)


def test_calibration_is_that_of_scikit_learns_curve() -> None:
    """For two classes: its curve of the greater probability, weighted by what is in each bin."""
    logits = 2 * noise(500, 2)
    target = classes(500, 2)
    confidence, predicted = logits.softmax(1).max(1)
    is_right = (predicted == target).numpy()
    accuracy, mean = calibration_curve(is_right, confidence.numpy(), n_bins=15)
    counts = np.histogram(confidence.numpy(), np.linspace(0, 1, 16))[0]
    expected = (np.abs(accuracy - mean) * counts[counts > 0]).sum() / 500
    assert diagnostics.expected_calibration_error(logits, target).item() == pytest.approx(float(expected))
    assert expected > 0.2  # labels at random


def test_a_model_that_is_right_as_often_as_it_says_has_no_error() -> None:
    """Ten images at each of five confidences, of which so many are right; then with logits twice as large."""
    confidence = torch.tensor([0.6, 0.7, 0.8, 0.9, 1.0], dtype=torch.float64).repeat_interleave(10)
    wrong = torch.cat([torch.arange(10) >= right for right in (6, 7, 8, 9, 10)]).long()
    logits = binary(confidence).clamp(min=-30)
    assert diagnostics.expected_calibration_error(logits, wrong).item() == pytest.approx(0, abs=1e-9)
    assert diagnostics.mean_confidence(logits).item() == pytest.approx(0.8)
    twice = diagnostics.expected_calibration_error(2 * logits, wrong)
    assert twice.item() == pytest.approx(diagnostics.mean_confidence(2 * logits).item() - 0.8)  # overconfident in all
    assert twice > 0.05


def test_calibration_ignores_whether_a_model_is_any_good() -> None:
    target = torch.tensor([0, 1] * 10)
    assert diagnostics.expected_calibration_error(torch.zeros(20, 2), target) == 0  # says and gets one half
    sure = diagnostics.expected_calibration_error(torch.tensor([[100.0, 0.0]]).expand(20, 2), target)
    assert sure.item() == pytest.approx(0.5)


def test_a_bin_has_its_upper_end() -> None:
    logits = binary(torch.tensor([0.5, 0.75], dtype=torch.float64))  # right and wrong: 0.5 too low, 0.75 too high
    target = torch.tensor([0, 1])
    assert diagnostics.expected_calibration_error(logits, target, bins=2).item() == pytest.approx((0.5 + 0.75) / 2)
    assert diagnostics.expected_calibration_error(logits, target, bins=1).item() == pytest.approx((0.75 - 0.5) / 2)


@pytest.mark.parametrize("n", [128, 2048])
def test_calibration_of_few_images_is_off_by_chance(n: int) -> None:
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(200):
        confidence = torch.rand(n, generator=generator, dtype=torch.float64) / 2 + 0.5
        target = (torch.rand(n, generator=generator, dtype=torch.float64) > confidence).long()
        found.append(diagnostics.expected_calibration_error(binary(confidence), target, bins=30).item())
    assert np.mean(found) == pytest.approx(math.sqrt(15 / n) / 4, rel=0.3)  # half of the bins are below one half


def test_confidences_are_computed_in_float32_from_half_precision() -> None:
    logits, target = noise(50, 4).bfloat16(), classes(50, 4)
    for function in (
        diagnostics.mean_confidence,
        functools.partial(diagnostics.expected_calibration_error, target=target),
        functools.partial(diagnostics.top1_agreement, logits),
    ):
        found = function(logits)
        assert found.dtype == torch.float32
        assert torch.equal(found, function(logits.float()))


def test_mean_confidence_is_that_of_scipys_softmax() -> None:
    logits = 500 * noise(50, 4)  # exponentials of these are infinite
    expected = scipy.special.softmax(logits.numpy(), 1).max(1).mean()
    assert diagnostics.mean_confidence(logits).item() == pytest.approx(expected)
    assert diagnostics.mean_confidence(torch.zeros(3, 4)).item() == pytest.approx(0.25)


# Errors, by what they say

BAD: dict[str, tuple[Callable[[], object], str]] = {
    "classes": (
        lambda: diagnostics.top1_agreement(torch.ones(3, 2), torch.ones(3, 4)),
        "top1_agreement: student_logits (3, 2) and teacher_logits (3, 4); expected (n, k)",
    ),
    "no rows": (
        lambda: diagnostics.mean_confidence(torch.ones(0, 2)),
        "mean_confidence: logits (0, 2); expected (n, k)",
    ),
    "diverged": (
        lambda: diagnostics.mean_confidence(torch.tensor([[math.nan, 1.0]])),
        "mean_confidence: logits has values that are not finite",
    ),
    "target": (
        lambda: diagnostics.expected_calibration_error(torch.ones(3, 2), torch.zeros(2, dtype=torch.int64)),
        "expected_calibration_error: logits are (3, 2) and target (2,); expected (n, k) and (n,)",
    ),
    "bins": (
        lambda: diagnostics.expected_calibration_error(torch.ones(3, 2), torch.zeros(3, dtype=torch.int64), bins=0),
        "expected_calibration_error: bins is 0; expected at least 1",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_say_what_was_found(name: str) -> None:
    call, message = BAD[name]
    with reference.as_a_user(), pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        call()
