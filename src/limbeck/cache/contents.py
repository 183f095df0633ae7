"""What a cache keeps of a forward pass of the teacher: packed into plain tensors, and unpacked again."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from limbeck.distiller import Distiller
from limbeck.errors import UserError
from limbeck.features import pooling
from limbeck.features.taps import Captured
from limbeck.terms import LabelledLogitTerm, LogitTerm
from limbeck.training.bad_batch import OF_TEACHER, at_fault, images_in_words, listed

FEATURE = "feature."
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Reduction:
    """A way to keep less of a feature than the tap gives: what the term would pool, pooled before it is written.

    Attributes:
        name: Of the pool, for the cache's identity.
        pool: What the term does to the feature.
        restore: Makes of the pooled rows a feature that the same pool turns into the same rows.
    """

    name: str
    pool: pooling.Pool
    restore: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Spec:
    """One thing that is kept for each image.

    Attributes:
        shape: Of one row, as it is stored.
        stored: Number format on disk.
        computed: Number format in which the teacher gave it, and in which it is read back.
        channels_last: Whether it is a map whose channels lay last in memory; it is stored in that order, so that
            it is read back in it without a copy. Sums over maps depend on the order in their last bits.
    """

    shape: tuple[int, ...]
    stored: str
    computed: str
    channels_last: bool = False

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape) * getattr(torch, self.stored).itemsize


@final
@dataclass(frozen=True)
class Contents:
    """What is kept of each forward pass, and how.

    With ``top_k`` the k largest logits of each image are kept, their classes, and the logsumexp of the others. Read
    back, the others share that mass evenly: ``y_j = rest - log(classes - k)``. At temperature 1 the softmax is then
    exact for the k classes and for the sum of the others.

    Args:
        taps: Taps of the teacher whose features are kept.
        output: Whether the teacher's output is kept.
        top_k: Keep this many logits of each output; None, or as many as there are classes, for all of them.
        exact: Keep values as the teacher gave them. Else float32 is rounded to float16; what the teacher computed in
            half precision is kept as it is in either case.
        reduction: What is done to every feature before it is written; None keeps it as the tap gives it.

    Deviates from: FKD, whose "marginal smoothing" spreads the others evenly in the same way, in that it keeps
        probabilities: here it is logits, so that a loss at any temperature can follow, for which the even spread is an
        approximation also of the sum of the others.

    References:
        Z. Shen, E. Xing, "A Fast Knowledge Distillation Framework for Visual Recognition", ECCV 2022, section 3.

    Example:
        >>> contents = Contents(taps=("fc:input",), top_k=2)
        >>> teacher = Captured(torch.tensor([[3.0, 1.0, 0.0, 0.0]]), {"fc:input": torch.ones(1, 5)})
        >>> packed = contents.pack(teacher)
        >>> sorted(packed)
        ['feature.fc:input', 'output.classes', 'output.rest', 'output.values']
        >>> contents.unpack(packed, contents.specs(teacher), classes=4).output.round(decimals=3).tolist()
        [[3.0, 1.0, 0.0, 0.0]]
    """

    taps: tuple[str, ...]
    output: bool = True
    top_k: int | None = None
    exact: bool = False
    reduction: Reduction | None = None

    def pack(self, captured: Captured, specs: Mapping[str, Spec] | None = None) -> dict[str, Tensor]:
        """Plain tensors with one row an image, on the CPU.

        Args:
            captured: What the teacher gave.
            specs: Of the cache; None: as this forward pass has them.

        Raises:
            UserError: If a value is not finite, or float16 cannot hold it.
        """
        specs = specs if specs is not None else self.specs(captured)
        rows = {name: self._narrowed(name, x, captured.index) for name, x in self._kept(captured).items()}
        ordered = {name: x.permute(0, 2, 3, 1) if specs[name].channels_last else x for name, x in rows.items()}
        return {name: x.cpu().contiguous() for name, x in ordered.items()}

    def unpack(self, rows: Mapping[str, Tensor], specs: Mapping[str, Spec], *, classes: int) -> Captured:
        """What the teacher gave, in the number format in which it gave it.

        Args:
            rows: What `pack` made.
            specs: Of the rows, from `specs`.
            classes: Columns of the teacher's output.
        """
        wide = {name: rows[name].to(getattr(torch, spec.computed)) for name, spec in specs.items()}
        wide |= {name: wide[name].permute(0, 3, 1, 2) for name, spec in specs.items() if spec.channels_last}
        restore = self.reduction.restore if self.reduction is not None else _as_it_is
        features = {tap: restore(wide[FEATURE + tap]) for tap in self.taps}
        if not self.output:
            count = len(next(iter(wide.values())))
            return Captured(torch.empty(count, 0), features)
        if "output" in wide:
            return Captured(wide["output"], features)
        values, rest = wide["output.values"], wide["output.rest"]
        others = classes - values.shape[-1]
        output = (rest - math.log(others)).to(values.dtype).unsqueeze(-1).repeat_interleave(classes, -1)
        return Captured(output.scatter_(-1, wide["output.classes"].long(), values), features)

    def specs(self, captured: Captured) -> dict[str, Spec]:
        """Shape and number format of what `pack` makes of a forward pass like this one."""
        found: dict[str, Spec] = {}
        for name, x in self._kept(captured).items():
            last = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
            shape = (*x.shape[2:], x.shape[1]) if last else tuple(x.shape[1:])
            found[name] = Spec(shape, _plain(self._format(x)), _plain(x.dtype), last)
        return found

    def settings(self) -> dict[str, Any]:
        """What decides the stored rows, for the cache's identity."""
        return {
            "taps": list(self.taps),
            "pool": self.reduction.name if self.reduction is not None else None,
            "output": self.output,
            "top_k": self.top_k,
            "exact": self.exact,
        }

    def require(self, distiller: Distiller) -> None:
        """Refuse terms that read what is not kept.

        Raises:
            UserError: If there are some; the message names the first.
        """
        for name, term in distiller.terms.items():
            for tap in term.teacher_taps:
                if tap not in self.taps:
                    kept = ", ".join(self.taps) or "none"
                    raise UserError(f'term "{name}" reads the teacher\'s "{tap}", which the cache has not: {kept}')
            if isinstance(term, (LogitTerm, LabelledLogitTerm)) and not self.output:
                raise UserError(f'term "{name}" reads the teacher\'s output, which the cache has not')

    def _kept(self, captured: Captured) -> dict[str, Tensor]:
        """What is stored, in the number format of the teacher."""
        found: dict[str, Tensor] = {}
        output = captured.output
        if self.output and (self.top_k is None or self.top_k >= output.shape[-1]):
            found["output"] = output
        elif self.output:
            top = output.topk(self.top_k or 0)
            others = output.float().scatter(-1, top.indices, -math.inf)
            small = torch.int16 if output.shape[-1] <= torch.iinfo(torch.int16).max else torch.int32
            found["output.values"] = top.values
            found["output.classes"] = top.indices.to(small)
            found["output.rest"] = others.logsumexp(-1)
        pool = self.reduction.pool if self.reduction is not None else _as_it_is
        return found | {FEATURE + tap: pool(captured.features[tap]) for tap in self.taps}

    def _format(self, x: Tensor) -> torch.dtype:
        return x.dtype if self.exact or x.dtype not in (torch.float32, torch.float64) else torch.float16

    def _narrowed(self, name: str, x: Tensor, index: Tensor | None) -> Tensor:
        kept = x.to(self._format(x))
        if kept.is_floating_point() and not bool(kept.isfinite().all()):
            if bool(x.isfinite().all()):
                raise UserError(
                    f"the teacher's {name.replace('.', ' ', 1)} goes up to {float(x.abs().max()):.3g}, and float16 "
                    "holds 65504 at most; use --cache-precision exact"
                )
            sound = x.isfinite().unsqueeze(-1).flatten(1).all(1)
            whose = images_in_words(at_fault({name: sound}, listed([index] if index is not None else [])))
            raise UserError(f"the teacher's {name.replace('.', ' ', 1)} is not finite{whose}; {OF_TEACHER}")
        return kept


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
