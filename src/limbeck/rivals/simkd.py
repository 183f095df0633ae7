"""SimKD: a student that keeps the teacher's classifier, and only learns to feed it."""

import copy
from typing import final

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.distiller import FrozenTeacher
from limbeck.errors import UserError
from limbeck.features.taps import Taps


def bottleneck(d_s: int, d_t: int, *, reduction: int = 2) -> nn.Sequential:
    """SimKD's projector: 1x1, 3x3 and 1x1 convolutions, each with batch norm and ReLU.

    The hidden width is ``d_t / reduction``. The last ReLU makes its output as nonnegative as the teacher's feature.

    Args:
        d_s: Width of the student's map.
        d_t: Width of the teacher's.
        reduction: How much narrower the 3x3 convolution is; the published code has 2.

    Returns:
        The layers in order, with about ``(d_s d_t + d_t^2) / r + 9 d_t^2 / r^2`` parameters. They stay in the student,
        so their batch norms are the framework's, with running statistics.

    Raises:
        UserError: If a width or the reduction is below 1, or the reduction leaves no channel.

    Deviates from: nothing.

    References:
        D. Chen, J.-P. Mei, H. Zhang, C. Wang, Y. Feng, C. Chen, "Knowledge Distillation with the Reused Teacher
        Classifier", CVPR 2022, section 3; the layers are those of its code (DefangChen/SimKD).

    Example:
        >>> sum(p.numel() for p in bottleneck(256, 256).parameters())
        214016
    """
    if min(d_s, d_t, reduction) < 1 or d_t < reduction:
        raise UserError(f"bottleneck: d_s, d_t and reduction are {(d_s, d_t, reduction)}; expected 1 or more, d_t most")
    hidden = d_t // reduction
    return nn.Sequential(
        *(nn.Conv2d(d_s, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU()),
        *(nn.Conv2d(hidden, hidden, 3, padding=1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU()),
        *(nn.Conv2d(hidden, d_t, 1, bias=False), nn.BatchNorm2d(d_t), nn.ReLU()),
    )


@final
class ReusedClassifier(nn.Module):
    """A student with the teacher's classifier: backbone, projector, mean over positions, classifier.

    ``classifier( mean_p projector( x_s )[p] )`` with ``x_s`` the student's map at the tap. This module is the student:
    hand it to the distiller, train it, evaluate it and export it. Unlike the projectors of all other terms, this one
    is not thrown away after training: it, and the copy of the teacher's classifier, are part of what is deployed, and
    count in its size and its latency.

    The classifier is a copy, frozen and in eval mode. Train the rest on the teacher's map alone, that is, with
    ``HintTerm("projector", teacher_tap, regressor=nn.Identity())`` and a weight of 0 for the task, as the paper does::

        student = ReusedClassifier(backbone, "layer3", projector=bottleneck(256, 256), classifier=teacher.fc)
        term = HintTerm("projector", "layer3", regressor=nn.Identity())
        Distiller(student, teacher, task, terms={"feature": term}, weights={"task": 0.0})

    The tap of the teacher is the map that its classifier reads after the mean; where there is a norm between them
    (ConvNeXt), it belongs to the classifier that is handed over.

    Args:
        student: The backbone. Build it headless (``num_classes=0``): layers behind the tap get no gradient, and
            training refuses parameters without one.
        student_tap: Tap of its last map ``(n, c, h, w)``.
        projector: From that map to the teacher's width, for instance :func:`bottleneck`.
        classifier: From the teacher's pooled feature to logits.
        size: Height and width of the teacher's map. A student's map that is larger is averaged down to it in front of
            the projector, as in the paper. None leaves it as it is.

    Raises:
        UserError: If the tap does not exist; on a call, if it gives no map.

    Deviates from: nothing.

    References:
        D. Chen, J.-P. Mei, H. Zhang, C. Wang, Y. Feng, C. Chen, "Knowledge Distillation with the Reused Teacher
        Classifier", CVPR 2022, section 3.

    Example:
        >>> import torch
        >>> backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> student = ReusedClassifier(backbone, "0", projector=bottleneck(8, 16), classifier=nn.Linear(16, 10))
        >>> student(torch.randn(2, 3, 6, 6)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        student: nn.Module,
        student_tap: str,
        *,
        projector: nn.Module,
        classifier: nn.Module,
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.projector = projector
        self.classifier = FrozenTeacher(copy.deepcopy(classifier))
        self.student_tap = student_tap
        self.size = size
        self._taps = Taps(student, [student_tap])

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of the teacher's classifier."""
        x = self._taps(images).features[self.student_tap]
        if x.ndim != 4:
            raise UserError(f'ReusedClassifier: "{self.student_tap}" gave {tuple(x.shape)}; expected (n, c, h, w)')
        if self.size is not None and (x.shape[2] > self.size[0] or x.shape[3] > self.size[1]):
            x = F.adaptive_avg_pool2d(x, (min(x.shape[2], self.size[0]), min(x.shape[3], self.size[1])))
        return self.classifier.model(self.projector(x).mean((2, 3)))

    def extra_repr(self) -> str:
        """The tap, for ``print``."""
        return f"student_tap={self.student_tap}"
