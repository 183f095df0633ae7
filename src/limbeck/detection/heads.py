"""Terms of what the heads of detectors say."""

from collections.abc import Callable
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from limbeck.detection.interface import Detector, Level, Regions
from limbeck.distributed import collectives
from limbeck.errors import UserError
from limbeck.features.taps import Captured
from limbeck.terms import Loss


def soft_focal(y_s: Float[Tensor, "*n k"], y_t: Float[Tensor, "*n k"], *, gamma: float = 2.0) -> Float[Tensor, "*n k"]:
    """Quality focal loss with the teacher's probabilities as labels: ``|p_s - p_t|^gamma BCE(y_s, p_t)``, elementwise.

    With ``p`` the sigmoid of ``y``. Rewards equal probabilities; where they are nearly equal, and that is so for
    almost all places of an image, which both call background, value and gradient vanish with the power gamma.

    Args:
        y_s: Student logits.
        y_t: Teacher logits.
        gamma: Exponent, 2 in the paper.

    Returns:
        One value an element.

    References:
        X. Li et al., "Generalized Focal Loss: Learning Qualified and Distributed Bounding Boxes for Dense Object
        Detection", NeurIPS 2020, equation 2.

    Example:
        >>> soft_focal(torch.tensor([[0.0, 3.0]]), torch.tensor([[0.0, 3.0]]))
        tensor([[0., 0.]])
    """
    p_s, p_t = y_s.sigmoid(), y_t.sigmoid()
    return (p_s - p_t).abs().pow(gamma) * F.binary_cross_entropy_with_logits(y_s, p_t, reduction="none")


@final
class DenseHeadTerm:
    """Match the outputs of two one-stage detectors, place by place: their class scores and their boxes.

    With ``w`` the teacher's largest class probability at a place, over all places of all images and processes::

        sum soft_focal(y_s, y_t) / sum w  +  sum w smooth_l1(r_s, r_t) / sum w

    Boxes are compared where the teacher sees something, in proportion to how sure it is. Both models have to have the
    same places: levels, strides and anchors.

    Args:
        classes: How many columns of the output are class logits; the four behind them are the box.

    Raises:
        UserError: If classes is below 1; on a call, if the outputs differ in shape.

    References:
        The paper of :func:`soft_focal`; G. Chen et al., "Learning Efficient Object Detection Models with Knowledge
        Distillation", NIPS 2017, which was the first to take boxes from the teacher.
    """

    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()

    def __init__(self, classes: int) -> None:
        if classes < 1:
            raise UserError(f"DenseHeadTerm: classes is {classes}; expected the sigmoid logits of 1 class or more")
        self.classes = classes
        self.readings: dict[str, Tensor] = {}

    def __call__(self, student: Captured, teacher: Captured) -> Float[Tensor, ""]:
        """The loss of one batch; see the class."""
        if student.output.shape != teacher.output.shape:
            raise UserError(
                f"the student's heads give {tuple(student.output.shape)} and the teacher's "
                f"{tuple(teacher.output.shape)}; head distillation needs the same levels, anchors and classes"
            )
        with torch.autocast(student.output.device.type, enabled=False):
            out_s, out_t = (
                captured.output.to(torch.promote_types(captured.output.dtype, torch.float32))
                for captured in (student, teacher)
            )
            k = self.classes
            weight = out_t[..., :k].sigmoid().amax(-1)
            boxes = F.smooth_l1_loss(out_s[..., k : k + 4], out_t[..., k : k + 4], reduction="none").sum(-1)
            scores = soft_focal(out_s[..., :k], out_t[..., :k])
            parts = collectives.all_sum(torch.stack([scores.sum(), (weight * boxes).sum()]))
            parts = parts / collectives.sum_across(weight.sum()).clamp_min(1e-6)
            self.readings = {"scores": parts[0].detach(), "boxes": parts[1].detach()}
            return parts.sum()


@final
class RegionTerm:
    """Match the second stages of two Faster R-CNNs on the student's proposals: their class logits.

    The student's first stage proposes boxes, without gradient; both second stages judge them, each on its own pyramid;
    the loss compares the two sets of class logits, the background being one of the classes. A mean over the proposals
    of all images and processes.

    Args:
        student: The student, in which the term computes; it stays a module of the distiller.
        teacher: The teacher as a whole, not its trunk alone.
        loss: Loss of two sets of logits that is a mean over the rows, for instance soft targets.
        proposals: Most proposals of an image.

    Deviates from: the first distilled detectors, which compare on proposals of their own or on the sampled ones of
        training; here on the best of the student's, which are those that it is judged by.

    References:
        G. Chen, W. Choi, X. Yu, T. Han, M. Chandraker, "Learning Efficient Object Detection Models with Knowledge
        Distillation", NIPS 2017, section 3.2.
    """

    def __init__(self, student: Regions, teacher: Regions, *, loss: Loss, proposals: int = 128) -> None:
        if proposals < 1:
            raise UserError(f"RegionTerm: proposals is {proposals}; expected at least 1")
        self.models = (student, teacher)
        self.loss = loss
        self.proposals = proposals
        self.finest: Level = student.levels[0]
        self.student_taps: tuple[str, ...] = (self.finest.tap,)
        self.teacher_taps: tuple[str, ...] = ()
        self.readings: dict[str, Tensor] = {}

    def __call__(self, student: Captured, teacher: Captured) -> Float[Tensor, ""]:
        """The loss of one batch; see the class."""
        finest = student.features[self.finest.tap]
        frame = (finest.shape[2] * self.finest.stride, finest.shape[3] * self.finest.stride)
        both: Callable[..., tuple[Tensor, Tensor]] = self._both
        if torch.compiler.is_compiling():  # the stages are in float32, and their backward pass would not be
            both = torch.compiler.disable(both)  # pyright: ignore
        y_s, y_t = both(student.output, teacher.output, frame)
        if y_s.shape != y_t.shape:
            raise UserError(f"the student has {y_s.shape[1] - 1} classes and the teacher {y_t.shape[1] - 1}")
        agreement = (y_s.detach().argmax(-1) == y_t.argmax(-1)).float()
        self.readings = {"agreement": agreement.mean() if len(agreement) else agreement.sum()}
        share = collectives.all_sum(self.loss(y_s, y_t) * len(y_s) if len(y_s) else y_s.sum())
        return share / collectives.sum_across(y_s.new_tensor(float(len(y_s)))).clamp_min(1)

    def _both(self, ours: Tensor, theirs: Tensor, frame: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Class logits of both second stages for the student's proposals."""
        student, teacher = self.models
        boxes = student.propose(ours, frame, self.proposals)
        y_s, _ = student.classify(ours, boxes, frame)
        with torch.no_grad():
            y_t, _ = teacher.classify(theirs, boxes, frame)
        return y_s, y_t


def is_sigmoid(model: Detector) -> bool:
    """Whether a detector's output has class logits that :class:`DenseHeadTerm` can read."""
    return model.classes > 0 and not model.two_stage
