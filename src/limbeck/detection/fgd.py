"""Focal and global distillation (FGD): where and in which channels a detector's teacher looks; how places relate."""

from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.detection.foreground import touched
from limbeck.distributed import collectives
from limbeck.errors import UserError
from limbeck.features.taps import Captured
from limbeck.losses.inputs import at_least_float32, product
from limbeck.rivals.maps import as_map


class Weights(NamedTuple):
    """Of the four parts; by default those of the published code for Faster R-CNN.

    Attributes:
        foreground: Of features in boxes.
        background: Of features in none.
        attention: Of the attention maps.
        relation: Of the global part.
    """

    foreground: float = 5e-5
    background: float = 2.5e-5
    attention: float = 5e-5
    relation: float = 5e-7


@final
class Context(nn.Module):
    """A map plus a vector that it has everywhere: its own attention-weighted mean behind a bottleneck (GCNet).

    Args:
        channels: Width of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // 2)
        self.attention = nn.Conv2d(channels, 1, 1, bias=False)  # the softmax cancels a bias
        self.transform = nn.Sequential(
            nn.Conv2d(channels, hidden, 1),
            nn.LayerNorm([hidden, 1, 1]),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1),
        )
        nn.init.kaiming_normal_(self.attention.weight, mode="fan_in")
        last = self.transform[-1]
        assert isinstance(last, nn.Conv2d)
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The map with its context."""
        places = x.flatten(2).mT
        # The convolutions as products, whose gradient autocast does not lower in compiled code either.
        weight = product(places, self.attention.weight.flatten(1)).softmax(1)  # (n, positions, 1)
        first, norm, activation, last = self.transform
        hidden = activation(norm(_pointwise(first, (places * weight).sum(1))[:, :, None, None]))
        return x + _pointwise(last, hidden.flatten(1))[:, :, None, None]


def _pointwise(layer: nn.Module, z: Float[Tensor, "n c"]) -> Float[Tensor, "n d"]:
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    return product(z, layer.weight.flatten(1)) + layer.bias


@final
class FGDTerm(nn.Module):
    """Focal and global distillation of one level of a pyramid.

    With ``a(x)`` the mean of |x| over the channels at each place, ``g(x)`` that over the places in each channel, and
    ``S = HW softmax(a / T)``, ``G = C softmax(g / T)`` for the attention of a map (S for places, G for channels)::

        focal     = f sum m_f S_t G_t (x_t - x_s)^2 + b sum m_b S_t G_t (x_t - x_s)^2
        attention = c ( |S_s - S_t|_1 + |G_s - G_t|_1 )
        global    = r | context(x_s) - context(x_t) |^2

    all sums over places and channels, means over images. ``m_f`` is, at a place in boxes, the inverse area of the
    smallest of them in places, else 0; ``m_b`` is 1 over the number of places in no box there, else 0.

    Rewards the teacher's values where it looks, objects of every size alike. Ignores nothing at all by the global part,
    but with a small weight. The sums grow with the size of the map and the width, for which the weights are small.

    Args:
        student_tap: Tap of the student's level, a map.
        teacher_tap: Tap of the teacher's.
        d_s: Width of the student's map.
        d_t: Width of the teacher's; where it is another one a 1x1 convolution leads there.
        stride: Pixels of the frame for each position.
        weights: Of the parts.
        temperature: T, 0.5 in the paper.

    Raises:
        UserError: If a width or the stride is below 1 or the temperature not positive; on a call, if there are no boxes
            or a feature is no map of its width.

    Deviates from: the published code (yzd-v/FGD), in whose masks a box reaches one place further to the right and down
        than its corner, and whose places are shares of the image before it is padded; here a box is where it is in the
        frame. Its biases of the attention convolutions, which the softmax
        cancels, are left out. The context of the teacher's side is trained, as there, so that both sides can meet.

    References:
        Z. Yang et al., "Focal and Global Knowledge Distillation for Detectors", CVPR 2022, equations 2 to 10.

    Example:
        >>> term = FGDTerm("a", "b", d_s=4, d_t=6, stride=8)
        >>> target = torch.tensor([[[0.0, 0.0, 20.0, 20.0, 1.0]]])
        >>> student = Captured(torch.zeros(1), {"a": torch.randn(1, 4, 5, 5)}, target)
        >>> teacher = Captured(torch.zeros(1), {"b": torch.randn(1, 6, 5, 5)}, target)
        >>> term(student, teacher).ndim
        0
    """

    readings: dict[str, Tensor]

    def __init__(
        self,
        student_tap: str,
        teacher_tap: str,
        *,
        d_s: int,
        d_t: int,
        stride: int,
        weights: Weights | None = None,
        temperature: float = 0.5,
    ) -> None:
        super().__init__()
        if min(d_s, d_t, stride) < 1 or not temperature > 0:
            raise UserError(
                f"FGDTerm: d_s {d_s}, d_t {d_t}, stride {stride}, temperature {temperature}; expected positive numbers"
            )
        self.student_taps = (student_tap,)
        self.teacher_taps = (teacher_tap,)
        self.d_s, self.d_t = d_s, d_t
        self.stride = stride
        self.weights = weights if weights is not None else Weights()
        self.temperature = temperature
        self.align = nn.Conv2d(d_s, d_t, 1) if d_s != d_t else nn.Identity()
        self.student_context = Context(d_t)
        self.teacher_context = Context(d_t)
        self.readings = {}

    def forward(self, student: Captured, teacher: Captured) -> Float[Tensor, ""]:
        """The loss of one batch; see the class. The readings are its four parts, weighted."""
        tap_s, tap_t = self.student_taps[0], self.teacher_taps[0]
        target = student.target
        if target is None or target.ndim != 3:
            raise UserError("FGDTerm needs boxes, and the batch has none; use limbeck.detection.Detection")
        x_s = self.align(as_map("FGDTerm", tap_s, student.features[tap_s], self.d_s))
        x_t = as_map("FGDTerm", tap_t, teacher.features[tap_t], self.d_t)
        if x_s.shape != x_t.shape:
            raise UserError(f"FGDTerm: student is {tuple(x_s.shape)} and teacher {tuple(x_t.shape)}; expected equal")
        with torch.autocast(x_s.device.type, enabled=False):
            x_s, x_t = at_least_float32(x_s), at_least_float32(x_t)
            front, behind = masks(target, (x_s.shape[2], x_s.shape[3]), self.stride)
            places_s, channels_s = self._attention(x_s)
            places_t, channels_t = self._attention(x_t)
            error = (channels_t[:, :, None, None] * (x_t - x_s).square()).sum(1) * places_t  # (n, h, w)
            contexts = self.student_context(x_s), self.teacher_context(x_t)
            count, w = len(x_s), self.weights
            parts = {
                "foreground": w.foreground * (front * error).sum() / count,
                "background": w.background * (behind * error).sum() / count,
                "attention": w.attention
                * ((places_s - places_t).abs().sum() + (channels_s - channels_t).abs().sum())
                / count,
                "relation": w.relation * (contexts[0] - contexts[1]).square().sum() / count,
            }
            values = collectives.global_mean(torch.stack(list(parts.values())), count)
        self.readings = dict(zip(parts, values.detach(), strict=True))
        return values.sum()

    def _attention(self, x: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n h w"], Float[Tensor, "n c"]]:
        """S and G of a map."""
        n, c, h, w = x.shape
        size = x.abs()
        places = h * w * F.softmax(size.mean(1).flatten(1) / self.temperature, 1)
        channels = c * F.softmax(size.mean((2, 3)) / self.temperature, 1)
        return places.view(n, h, w), channels

    def extra_repr(self) -> str:
        """The taps, for ``print``."""
        return f"{self.student_taps[0]} -> {self.teacher_taps[0]}, stride={self.stride}"


def masks(
    target: Float[Tensor, "n m 5"], size: tuple[int, int], stride: int
) -> tuple[Float[Tensor, "n h w"], Float[Tensor, "n h w"]]:
    """The weights of the places in boxes and of those in none; see :class:`FGDTerm`.

    Example:
        >>> front, behind = masks(torch.tensor([[[0.0, 0.0, 8.0, 4.0, 2.0]]]), (2, 2), 4)
        >>> front.tolist(), behind.tolist()
        ([[[0.5, 0.5], [0.0, 0.0]]], [[[0.0, 0.0], [0.5, 0.5]]])
    """
    inside = touched(target, size, stride).to(target.dtype)  # (n, m, h, w)
    area = inside.sum((2, 3)).clamp_min(1)
    shares = inside / area[:, :, None, None]
    front = shares.amax(1) if shares.shape[1] else shares.sum(1)  # no row for a box: no image has one
    outside = (front == 0).to(front.dtype)
    return front, outside / outside.sum((1, 2), keepdim=True).clamp_min(1)
