"""Contrastive representation distillation (CRD)."""

import math
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from limbeck import losses
from limbeck.distributed import collectives
from limbeck.errors import UserError
from limbeck.features import pooling
from limbeck.features.taps import Captured
from limbeck.losses.inputs import at_least_float32, product


@final
class CRDTerm(nn.Module):
    """Contrastive representation distillation: tell the teacher's feature of the same image from those of K others.

    Both features are embedded by a linear map each and brought to unit length, ``u`` and ``v``. Two banks remember
    the last embeddings of every training image, ``U`` and ``V``. With the student as anchor, image i, and K images
    k drawn as negatives::

        h(i, k) = <u_i, V_k> / T - log Z_s - log(K / M)             M images, Z_s a constant
        loss_s  = mean_i ( softplus(-h(i, i)) + sum_k softplus(h(i, k)) )

    and the same with the teacher as anchor (``v_i`` against ``U``); the loss is the sum of the two. It is noise
    contrastive estimation: softplus is the cross entropy of the question whether a pair is the image's own. Z is M
    times the mean of ``exp(<u, V> / T)`` over the first batch, and kept. Then each bank takes in the batch,
    ``U_i <- unit( momentum U_i + (1 - momentum) u_i )``, without gradient.

    Rewards embeddings that single out the image; ignores everything about a feature that a linear map can drop. A mean
    over the batch and a sum over the negatives, whose number it feels by its logarithm alone: it starts at about
    ``2 (1 + log K) + 1 / (width T^2)``, 23 with the defaults, whatever N and M are, so the published weight of 0.8 is
    not a small one.

    In evaluation the images are not in the banks. The positive is then the other model's embedding of the image, the
    negatives are of all classes, and nothing is remembered.

    Across processes each one has the anchors that came to it, and the banks take in all of them, so that they stay
    equal. An image that is twice in a batch is remembered by its first row. Negatives are drawn from torch's global
    generator, which checkpoints keep; banks and constants are buffers, which they keep too.

    Args:
        student_tap: Tap of the student; the published code has the penultimate feature.
        teacher_tap: Tap of the teacher.
        d_s: Width of the student's feature, pooled.
        d_t: Width of the teacher's.
        images: Number of training images, M; ``Captured.index`` counts them.
        width: Width of the embeddings.
        negatives: K.
        temperature: T.
        momentum: Share of the old embedding in the bank.
        labels: Class of every training image ``(images,)``: negatives are then of other classes than the image's, as
            in the authors' runs. Without labels they are any images, also, rarely, the image itself.
        student_pool: From maps or tokens to vectors, see :mod:`limbeck.features.pooling`.
        teacher_pool: The same for the teacher.

    Raises:
        UserError: If a number is out of its range, the labels are not one for each image or of one class only; on a
            call, if the batch does not say which images it holds, or a width differs.

    Deviates from: the published code. It adds 1e-7 to denominators, here the value is exact, in log space; draws
        labelled negatives without replacement, here with; flattens maps, here they are pooled; and leaves it to chance
        which of two equal images in a batch is remembered.

    References:
        Y. Tian, D. Krishnan, P. Isola, "Contrastive Representation Distillation", ICLR 2020, section 3.1 and the
        implementation details in the appendix; Z and the banks' momentum are from the code (HobbitLong/RepDistiller,
        ``crd``), which follows Z. Wu, Y. Xiong, S. X. Yu, D. Lin, "Unsupervised Feature Learning via Non-Parametric
        Instance Discrimination", CVPR 2018.

    Example:
        >>> term = CRDTerm("a", "b", d_s=4, d_t=6, images=100, negatives=10)
        >>> index = torch.arange(8)
        >>> student = Captured(torch.zeros(8), {"a": torch.randn(8, 4)}, index=index)
        >>> teacher = Captured(torch.zeros(8), {"b": torch.randn(8, 6, 2, 2)}, index=index)
        >>> term(student, teacher).ndim
        0
    """

    readings: dict[str, Tensor]
    student_bank: Tensor
    teacher_bank: Tensor
    constants: Tensor
    labels: Tensor | None
    by_class: Tensor | None
    class_sizes: Tensor | None

    def __init__(
        self,
        student_tap: str,
        teacher_tap: str,
        *,
        d_s: int,
        d_t: int,
        images: int,
        width: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        labels: Shaped[Tensor, " m"] | None = None,
        student_pool: pooling.Pool = pooling.automatic,
        teacher_pool: pooling.Pool = pooling.automatic,
    ) -> None:
        super().__init__()
        if min(d_s, d_t, images, width, negatives) < 1:
            raise UserError(
                f"CRDTerm: d_s, d_t, images, width and negatives are {(d_s, d_t, images, width, negatives)}; "
                "expected at least 1"
            )
        if not temperature > 0 or not 0 <= momentum < 1:
            raise UserError(
                f"CRDTerm: temperature is {temperature} and momentum {momentum}; expected above 0, and 0 up to below 1"
            )
        self.student_taps = (student_tap,)
        self.teacher_taps = (teacher_tap,)
        self.student_embedding = nn.Linear(d_s, width)
        self.teacher_embedding = nn.Linear(d_t, width)
        self.images = images
        self.negatives = negatives
        self.temperature = temperature
        self.momentum = momentum
        self.student_pool = student_pool
        self.teacher_pool = teacher_pool
        limit = math.sqrt(3 / width)  # uniform up to it: rows of length 1 on the average
        self.register_buffer("student_bank", torch.empty(images, width).uniform_(-limit, limit))
        self.register_buffer("teacher_bank", torch.empty(images, width).uniform_(-limit, limit))
        self.register_buffer("constants", torch.zeros(2))  # Z of either side; 0: not estimated yet
        sizes, order = _classes(labels, images) if labels is not None else (None, None)
        # What the labels give is no state of the training, so no checkpoint has it.
        self.register_buffer("labels", labels.long() if labels is not None else None, persistent=False)
        self.register_buffer("by_class", order, persistent=False)
        self.register_buffer("class_sizes", sizes, persistent=False)
        self.readings = {}

    def forward(self, student: Captured, teacher: Captured) -> Float[Tensor, ""]:
        """The loss of one batch; see the class."""
        u = self._embed(self.student_embedding, self.student_pool(student.features[self.student_taps[0]]))
        v = self._embed(self.teacher_embedding, self.teacher_pool(teacher.features[self.teacher_taps[0]]))
        index = self._index(student, len(u)) if self.training else None
        with torch.autocast(u.device.type, enabled=False):
            if index is not None:
                keys = torch.cat([index[:, None], self.draw_negatives(index)], 1)
                s = self._similarities(u, self.teacher_bank, keys)
                t = self._similarities(v, self.student_bank, keys)
            else:
                keys = torch.randint(self.images, (len(u), self.negatives), device=u.device)
                own = (u * v).sum(-1, keepdim=True)
                s = torch.cat([own, self._similarities(u, self.teacher_bank, keys)], 1)
                t = torch.cat([own, self._similarities(v, self.student_bank, keys)], 1)
            constants = torch.stack([self._constant(s, 0), self._constant(t, 1)])
            value = self._contrast(s, constants[0]) + self._contrast(t, constants[1])
        self.readings = {
            "positive": collectives.global_mean(s.detach()[:, 0].mean(), len(u)),
            "negative": collectives.global_mean(s.detach()[:, 1:].mean(), len(u)),
        }
        if index is not None:
            self.constants = constants.to(self.constants.dtype)
            self.student_bank = self._remembered(self.student_bank, index, u.detach())
            self.teacher_bank = self._remembered(self.teacher_bank, index, v.detach())
        return value

    def draw_negatives(self, index: Int64[Tensor, " n"]) -> Int64[Tensor, "n k"]:
        """K images for each of the given ones: of other classes where labels are known, else of all."""
        shape = (len(index), self.negatives)
        if self.labels is None or self.by_class is None or self.class_sizes is None:
            return torch.randint(self.images, shape, device=index.device)
        label = self.labels[index][:, None]
        size = self.class_sizes[label]
        begin = self.class_sizes.cumsum(0)[label] - size
        # A number among the images of the other classes, and then over the gap that the own class leaves.
        draw = torch.randint(2**62, shape, device=index.device) % (self.images - size)
        return self.by_class[draw + size * (draw >= begin)]

    def _index(self, student: Captured, rows: int) -> Tensor:
        index = student.index
        if index is None:
            raise UserError("CRDTerm: the batch does not say which images it holds; use batches with an index")
        if index.shape != (rows,):
            raise UserError(f"CRDTerm: got an index of {tuple(index.shape)} for {rows} features")
        # A GPU stops by itself; asking it first would make every step wait.
        if index.device.type == "cpu" and rows and not 0 <= int(index.min()) <= int(index.max()) < self.images:
            raise UserError(
                f"CRDTerm: the batch has images {int(index.min())} to {int(index.max())}; expected 0 to "
                f"{self.images - 1} (images={self.images})"
            )
        return index

    def _embed(self, embedding: nn.Linear, z: Tensor) -> Float[Tensor, "n width"]:
        if z.ndim != 2 or z.shape[1] != embedding.in_features:
            raise UserError(f"CRDTerm: got a feature of {tuple(z.shape)}; expected (n, {embedding.in_features})")
        return losses.unit_rows(at_least_float32(embedding(z)))

    def _similarities(
        self, anchors: Float[Tensor, "n width"], bank: Float[Tensor, "m width"], keys: Int64[Tensor, "n k"]
    ) -> Float[Tensor, "n k"]:
        # With every image, and then those drawn: the rows that were drawn would be 128 times the memory of the result.
        return product(anchors, bank).gather(1, keys)

    @torch.no_grad()
    def _constant(self, similarities: Float[Tensor, "n k"], side: int) -> Float[Tensor, ""]:
        """Z of one side: what is kept, or the estimate from the first batch."""
        y = similarities / self.temperature
        estimate = collectives.global_mean(y.exp().mean(), y.numel()) * self.images
        return torch.where(self.constants[side] > 0, self.constants[side], estimate)

    def _contrast(self, similarities: Float[Tensor, "n k"], constant: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The loss with one side as anchor; the positives are in the first column."""
        y = similarities / self.temperature
        h = y - constant.log() - math.log(self.negatives / self.images)
        rows = -F.logsigmoid(h[:, 0]) - F.logsigmoid(-h[:, 1:]).sum(1)  # F.softplus is linear above 20
        return collectives.global_mean(rows.mean(), len(rows))

    @torch.no_grad()
    def _remembered(self, bank: Tensor, index: Tensor, rows: Tensor) -> Tensor:
        """The bank with the batch in it; another tensor, since the backward pass reads the old one."""
        index = collectives.gather_rows(index)
        # The first row of each image, so that equal images write equal rows: which write comes last is not defined.
        first = (index[:, None] == index).to(torch.uint8).argmax(1)
        mixed = self.momentum * bank[index] + (1 - self.momentum) * collectives.gather_rows(rows)[first]
        return bank.index_copy(0, index, losses.unit_rows(mixed).to(bank.dtype))

    def extra_repr(self) -> str:
        """The taps and the numbers, for ``print``."""
        return (
            f"{self.student_taps[0]} -> {self.teacher_taps[0]}, images={self.images}, negatives={self.negatives}, "
            f"temperature={self.temperature}, momentum={self.momentum}"
        )


def _classes(labels: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """How many images each class has, and the images sorted by class."""
    if labels.shape != (images,) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise UserError(f"CRDTerm: labels are {tuple(labels.shape)}, {labels.dtype}; expected ({images},) integers")
    if int(labels.min()) < 0 or int(labels.min()) == int(labels.max()):
        raise UserError("CRDTerm: the labels have one class or a negative number; expected at least 2 classes, from 0")
    return torch.bincount(labels), labels.argsort(stable=True)
