"""Terms of the logits of two segmentation models, place by place and channel by channel."""

from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from limbeck.distributed import collectives
from limbeck.errors import UserError
from limbeck.features.taps import Captured
from limbeck.losses.inputs import at_least_float32
from limbeck.segmentation.batch import VOID
from limbeck.segmentation.task import resized

PIXEL_STRIDE = 4
"""Pixels of the frame for each place of KD. Chosen: no output of these models is finer but by interpolation."""

CHANNEL_STRIDE = 8
"""The same of CWD, whose code compares logits of stride 8."""


@final
class PixelTerm:
    """Soft targets at each place: ``T^2 mean_i KL( softmax(y_t[i] / T) || softmax(y_s[i] / T) )``, void left out.

    The mean is over the places i of a grid over all images of all processes, at which the pixel in the middle has a
    class. Both outputs are brought to the grid (bilinear), so that their strides may differ.

    Args:
        temperature: T.
        stride: Pixels of the frame for each place, across and down.

    Raises:
        UserError: On a call, if the models have other numbers of classes.

    References:
        G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", NIPS 2014 Deep Learning
        Workshop; Y. Liu et al., "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019, equation 1,
        which has T = 1.
    """

    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()

    def __init__(self, *, temperature: float = 4.0, stride: int = PIXEL_STRIDE) -> None:
        self.temperature = temperature
        self.stride = stride
        self.readings: dict[str, Tensor] = {}

    def __call__(self, student: Captured, teacher: Captured) -> Float[Tensor, ""]:
        """The loss of one batch; see the class."""
        with torch.autocast(student.output.device.type, enabled=False):
            y_s, y_t = on_grid(student, teacher, self.stride)
            valid = _with_a_class(_masks(student), y_s, self.stride)
            logs_s, logs_t = (F.log_softmax(y / self.temperature, dim=1) for y in (y_s, y_t))
            divergence = F.kl_div(logs_s, logs_t, reduction="none", log_target=True).sum(1)
            agree = (y_s.detach().argmax(1) == y_t.argmax(1)) & valid
            sums = torch.stack(
                [(divergence * valid).sum(), agree.sum().to(divergence.dtype), valid.sum().to(y_s.dtype)]
            )
            total, agreeing, count = collectives.all_sum(sums).unbind()
            count = count.detach().clamp_min(1)
            self.readings = {"agreement": agreeing.detach() / count}
            return self.temperature**2 * total / count


@final
class ChannelTerm:
    """CWD: ``T^2/(N K) sum_{n,k} KL( softmax_i(y_t[n,k,i] / T) || softmax_i(y_s[n,k,i] / T) )``, i over places.

    Each channel of the logits, divided by T, becomes a distribution over the places of its image: where this class is
    most likely. Ignores how large the logits of a class are, and how the classes compare at a place. All places count,
    those of void too, as in the paper. A mean over images and classes; it grows with the number of places only as far
    as the distributions get sharper.

    Args:
        temperature: T; 4 in the paper.
        stride: Pixels of the frame for each place, across and down.

    Raises:
        UserError: On a call, if the models have other numbers of classes.

    Deviates from: nothing but where the logits are read: its code has them at stride 8, here they are brought there.

    References:
        C. Shu, Y. Liu, J. Gao, Z. Yan, C. Shen, "Channel-Wise Knowledge Distillation for Dense Prediction", ICCV 2021
        (arXiv 2011.13256), equations 4 and 5.
    """

    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()

    def __init__(self, *, temperature: float = 4.0, stride: int = CHANNEL_STRIDE) -> None:
        self.temperature = temperature
        self.stride = stride
        self.readings: dict[str, Tensor] = {}

    def __call__(self, student: Captured, teacher: Captured) -> Float[Tensor, ""]:
        """The loss of one batch; see the class."""
        with torch.autocast(student.output.device.type, enabled=False):
            y_s, y_t = on_grid(student, teacher, self.stride)
            return collectives.global_mean(channel_divergence(y_s, y_t, temperature=self.temperature), len(y_s))


def channel_divergence(
    y_s: Float[Tensor, "n k h w"], y_t: Float[Tensor, "n k h w"], *, temperature: float = 4.0
) -> Float[Tensor, ""]:
    """The formula of :class:`ChannelTerm`.

    Example:
        >>> y = torch.tensor([[[[2.0, 0.0]]]])
        >>> channel_divergence(y, y + 3.0), round(float(channel_divergence(-y, y, temperature=1.0)), 4)
        (tensor(0.), 1.5232)
    """
    logs_s, logs_t = (F.log_softmax(y.flatten(2) / temperature, dim=2) for y in (y_s, y_t))
    return temperature**2 * F.kl_div(logs_s, logs_t, reduction="none", log_target=True).sum(2).mean()


def on_grid(student: Captured, teacher: Captured, stride: int) -> tuple[Float[Tensor, "n k h w"], ...]:
    """Both outputs, in at least float32, at every ``stride`` pixels of the frame.

    Raises:
        UserError: The models have other numbers of classes.
    """
    outputs = student.output, teacher.output
    if outputs[0].shape[1] != outputs[1].shape[1]:
        raise UserError(
            f"the student has {outputs[0].shape[1]} classes and the teacher {outputs[1].shape[1]}; "
            "terms of logits need the same ones"
        )
    size = [max(side // stride, 1) for side in _masks(student).shape[1:]]
    return tuple(resized(at_least_float32(y), (size[0], size[1])) for y in outputs)


def _masks(captured: Captured) -> Tensor:
    if captured.target is None or captured.target.ndim != 3:
        raise UserError("this term needs masks, and the batch has none; use limbeck.segmentation.Segmentation")
    return captured.target


def _with_a_class(masks: Tensor, places: Tensor, stride: int) -> Bool[Tensor, "n h w"]:
    """Which places of the grid have a pixel with a class in their middle."""
    height, width = places.shape[2:]
    return (masks != VOID)[:, stride // 2 :: stride, stride // 2 :: stride][:, :height, :width]
