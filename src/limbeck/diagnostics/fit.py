"""How well a student predicts: as its teacher does, and as confidently as it should."""

from jaxtyping import Float, Int
from torch import Tensor

from limbeck.diagnostics.inputs import check_finite
from limbeck.errors import UserError
from limbeck.losses.inputs import at_least_float32


def top1_agreement(student_logits: Float[Tensor, "n k"], teacher_logits: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """Share of the images that student and teacher give the same class.

    Rewards shared errors as much as shared truth, and ignores labels, confidence and all classes but the first. Two
    models of accuracy p agree on ``2 p - 1`` of the images at least.

    Args:
        student_logits: Of the student.
        teacher_logits: Of the teacher, for the same images and classes.

    Returns:
        A number between 0 and 1, in float32.

    Raises:
        UserError: If the shapes differ, there are no rows, or they are not finite.

    Deviates from: nothing.

    References:
        S. Stanton, P. Izmailov, P. Kirichenko, A. Alemi, A. G. Wilson, "Does Knowledge Distillation Really Work?",
        NeurIPS 2021.

    Example:
        >>> import torch
        >>> top1_agreement(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[0.0, 9.0], [1.0, 2.0]]))
        tensor(0.5000)
    """
    _check_logits("top1_agreement", student_logits=student_logits, teacher_logits=teacher_logits)
    return (student_logits.argmax(1) == teacher_logits.argmax(1)).float().mean()


def expected_calibration_error(
    logits: Float[Tensor, "n k"], target: Int[Tensor, " n"], *, bins: int = 15
) -> Float[Tensor, ""]:
    """How far confidence is from accuracy: ``sum_b n_b/n |accuracy_b - confidence_b|`` over bins of the confidence.

    The confidence is the greatest probability; bins are of equal width, each with its upper end. 0 is a model that is
    right as often as it says. It ignores whether a model is any good, and how the two differ within a bin. The few
    images of a bin are off by chance: a calibrated model on n images has some ``sqrt(bins / n) / 4``, 0.08 for 128, so
    compare values of the same n.

    Args:
        logits: Of the model.
        target: Classes.
        bins: How many.

    Returns:
        A number between 0 and 1, in at least float32.

    Raises:
        UserError: If the shapes do not fit, there are no rows, they are not finite, or bins is below 1.

    Deviates from: nothing.

    References:
        C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, equation 3.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[0.8, 0.2], [0.8, 0.2]]).log()  # two times 0.8, right once
        >>> expected_calibration_error(logits, torch.tensor([0, 1])).round(decimals=4)
        tensor(0.3000)
    """
    _check_logits("expected_calibration_error", logits=logits)
    if target.shape != logits.shape[:1]:
        raise UserError(
            f"expected_calibration_error: logits are {tuple(logits.shape)} and target {tuple(target.shape)}; "
            "expected (n, k) and (n,)"
        )
    if bins < 1:
        raise UserError(f"expected_calibration_error: bins is {bins}; expected at least 1")
    confidence, predicted = at_least_float32(logits).softmax(1).max(1)
    gap = (predicted == target).to(confidence.dtype) - confidence
    index = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)
    return confidence.new_zeros(bins).index_add(0, index, gap).abs().sum() / len(gap)


def mean_confidence(logits: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """Mean of the greatest probability.

    Next to the accuracy it says in which direction a model is off: above it overconfident, below it too modest.

    Args:
        logits: Of the model.

    Returns:
        A number between 1/k and 1, in at least float32.

    Raises:
        UserError: If there are no rows or they are not finite.

    Deviates from: nothing.

    Example:
        >>> import torch
        >>> mean_confidence(torch.tensor([[0.8, 0.2], [0.4, 0.6]]).log())
        tensor(0.7000)
    """
    _check_logits("mean_confidence", logits=logits)
    return at_least_float32(logits).softmax(1).amax(1).mean()


def _check_logits(name: str, **logits: Tensor) -> None:
    shapes = {tuple(each.shape) for each in logits.values()}
    if len(shapes) > 1 or any(each.ndim != 2 or each.numel() == 0 for each in logits.values()):
        found = " and ".join(f"{argument} {tuple(each.shape)}" for argument, each in logits.items())
        raise UserError(f"{name}: {found}; expected (n, k)")
    check_finite(name, **logits)
