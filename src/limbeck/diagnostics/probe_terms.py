"""What a probe writes of a term: of its projector, of where that stands, and of what it makes of the features.

Everything here is a function of one batch; :class:`limbeck.diagnostics.Probe` says when it is called.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck import losses, norms
from limbeck.diagnostics.dynamics import cross_relation, initial_share, pull, self_relation
from limbeck.diagnostics.fixed_points import fixed_point_distances
from limbeck.diagnostics.probe_projectors import (
    Record,
    jacobians,
    kind,
    matrix,
    quick_singular_values,
    record_spectrum,
)
from limbeck.diagnostics.recall import Look
from limbeck.diagnostics.similarity import (
    channel_correlations,
    cka,
    dead_channels,
    gradient_shares,
    input_output_correlation,
    off_diagonal_energy,
)
from limbeck.diagnostics.spectrum import column_normalized
from limbeck.features import pooling
from limbeck.features.taps import Captured
from limbeck.norms.roots import widest
from limbeck.terms import FeatureTerm, Sides, Term

ROWS = 4096  # of dense features: images are left out beyond
QUANTILES, BINS, PARTS = 11, 20, 10


@dataclass(frozen=True)
class Forces:
    """What moves a projector's matrix W, which is the parameter of a linear layer.

    Attributes:
        gradient: Of the weighted term.
        decay: The weight decay of SGD; None under another optimizer, whose steps are no multiples of a gradient.
        weight: That of the term.
    """

    gradient: Tensor
    decay: float | None
    weight: float


@dataclass(frozen=True)
class TermRecord:
    """What is written of a term, and what has to be remembered of it, by name."""

    record: Record
    first: dict[str, Tensor]
    last: dict[str, Tensor]


def few_rows(term: FeatureTerm, student: Captured, teacher: Captured) -> tuple[Captured, Captured]:
    """Both with so many images that a dense feature has about ``ROWS`` rows."""
    name = term.student_taps[0]
    positions = term.student_pool(student.features[name][:1]).shape[1:-1].numel()
    count = max(2, ROWS // positions)

    def first(side: Captured, taps: tuple[str, ...]) -> Captured:
        return side._replace(features={tap: side.features[tap][:count] for tap in taps})

    return first(student, term.student_taps), first(teacher, term.teacher_taps)


def record_feature_term(
    name: str,
    term: FeatureTerm,
    sides: Sides,
    *,
    first: Look | None,
    last: Look | None,
    forces: Forces | None,
    spectra: bool = True,
) -> TermRecord:
    """The record of a feature term.

    Args:
        name: Of the term, under which things are remembered.
        term: The term.
        sides: What it made of the batch.
        first: The first look, if this is not it.
        last: The one before, if there is one.
        forces: What moves W, if it is a parameter.
        spectra: Whether there is time for the projector's singular values.

    Returns:
        The record, without what cannot be computed, and what to remember.
    """
    sides = Sides(*(side.detach().flatten(0, -2) for side in sides))
    record: Record = {
        "widths": [sides.source.shape[-1], sides.projected.shape[-1]],
        "projector": kind(term.projector),
    }
    remembered = {f"{name}/student": sides.student}
    kept: dict[str, Tensor] = {}
    if not all(bool(torch.isfinite(side).all()) for side in sides):
        return TermRecord(record, {}, {})  # a decomposition would not end
    w = matrix(term.projector)
    if spectra and not isinstance(term.projector, nn.Identity):
        maps = [w] if w is not None else jacobians(term.projector, sides.source, sides.projected.shape[-1])
        for key, matrices in (
            ("spectrum", maps),
            ("spectrum_normalized", [column_normalized(each) for each in maps]),
        ):
            values = torch.stack([quick_singular_values(each) for each in matrices]).mean(0)
            initial = first.get(f"{name}/{key}", values.shape) if first is not None else values
            record[key] = record_spectrum(values, initial)
            remembered[f"{name}/{key}"] = values
    if w is not None:
        before = last.get(f"{name}/w", w.shape) if last is not None else None
        w_0 = first.get(f"{name}/w", w.shape) if first is not None else w
        record["dynamics"] = record_dynamics(term, sides, w, w_0=w_0, before=before, forces=forces)
        remembered[f"{name}/w"] = kept[f"{name}/w"] = w
    record["decorrelation"] = {
        "input_output": input_output_correlation(sides.source, sides.projected),
        "student": off_diagonal_energy(sides.student),
        "projected": off_diagonal_energy(sides.projected),
        "teacher": off_diagonal_energy(sides.teacher),
    }
    seen = first.get(f"{name}/student", sides.student.shape) if first is not None else sides.student
    record["fit"] = record_fit(term, sides, seen)
    return TermRecord(record, remembered, kept)


def record_dynamics(
    term: FeatureTerm, sides: Sides, w: Tensor, *, w_0: Tensor | None, before: Tensor | None, forces: Forces | None
) -> Record:
    """How far W is from the points where it could rest, what pulls at it, and what is left of its beginning."""
    centered = _behind(term) is not None or (isinstance(term.projector, nn.Linear) and term.projector.bias is not None)  # pyright: ignore[reportUnnecessaryComparison]
    other = (sides.student if term.inverted else sides.teacher).to(widest(w.device))
    source, seen = sides.source.to(other.dtype), w.to(other.dtype)
    if len(source) < source.shape[-1]:  # all of it is in the few directions that these rows have
        basis = torch.linalg.qr(source.T)[0]
        source, seen = source @ basis, basis.T @ seen
    c_s = self_relation(source, centered=centered) / len(other)
    c_st = cross_relation(source, other, centered=centered) / len(other)
    ridge = _ridge(term, forces, other.shape[-1])
    distances = fixed_point_distances(seen, c_s, c_st, ridge=ridge or 0.0)
    record: Record = {"whitened": distances.whitened.outputs, "least_squares": distances.least_squares.outputs}
    if ridge is not None:
        record["ridge"] = distances.ridge.outputs
    if forces is not None:
        record["gradient"] = torch.linalg.vector_norm(forces.gradient)
        if forces.decay is not None:
            record["decay"] = forces.decay * torch.linalg.vector_norm(w)
            record["pull"] = pull(w, forces.gradient.T, weight_decay=forces.decay)
    if w_0 is not None:
        record["initial_share"] = initial_share(w, w_0)
        record["initial_norm_ratio"] = torch.linalg.vector_norm(w) / torch.linalg.vector_norm(w_0)
    if before is not None:
        record["step_change"] = torch.linalg.vector_norm(w - before) / torch.linalg.vector_norm(before)
    return record


def record_fit(term: FeatureTerm, sides: Sides, first: Tensor | None) -> Record:
    """How well the two sides agree, channel by channel and as a whole."""
    c = channel_correlations(sides.compared_student, sides.compared_teacher)
    before, after = (sides.student, sides.teacher), (sides.projected, sides.teacher)
    if term.inverted:
        after = (sides.student, sides.projected)
    record: Record = {
        "correlation": {"mean": c.mean(), "quantiles": torch.quantile(c, torch.linspace(0, 1, QUANTILES).to(c))},
        "histogram": {
            "edges": [2 * edge / BINS - 1 for edge in range(BINS + 1)],
            "counts": [int(count) for count in torch.histc(c.float().cpu(), BINS, -1, 1)],
        },
        "cka_before": cka(*before),
        "cka_after": cka(*after),
        "dead_student": dead_channels(sides.student),
        "dead_projected": dead_channels(sides.projected),
        "dead_teacher": dead_channels(sides.teacher),
    }
    if term.correlation_loss is not None:
        record["gradient_share"] = gradient_shares(c, term.correlation_loss, parts=PARTS)
    if first is not None:
        record["student_change"] = 1 - cka(sides.student, first)
    return record


def record_other_term(term: Term, student: Captured, teacher: Captured) -> Record:
    """CKA of the features that another term compares, of its deepest pair; empty where there are none."""
    if not term.student_taps or not term.teacher_taps:
        return {}
    z_s = pooling.automatic(student.features[term.student_taps[-1]]).detach().float()
    z_t = pooling.automatic(teacher.features[term.teacher_taps[-1]]).detach().float()
    if z_s.shape[:-1] != z_t.shape[:-1]:
        return {}
    finite = bool(torch.isfinite(z_s).all() and torch.isfinite(z_t).all())
    return {"cka": cka(z_s, z_t)} if finite else {}


def following(terms: Mapping[str, Term], student: Captured, teacher: Captured) -> float | None:
    """CKA of student and teacher, an image a row: of what the deepest term compares, else of outputs; None if none."""
    compared = {name: term for name, term in terms.items() if term.student_taps and term.teacher_taps}
    deepest = next((term for name, term in compared.items() if not name[-1:].isdigit()), None)
    if isinstance(deepest, FeatureTerm):
        sides = (
            deepest.student_pool(student.features[deepest.student_taps[0]]),
            deepest.teacher_pool(teacher.features[deepest.teacher_taps[0]]),
        )
    elif deepest is not None:
        taps = deepest.student_taps[-1], deepest.teacher_taps[-1]
        sides = pooling.automatic(student.features[taps[0]]), pooling.automatic(teacher.features[taps[1]])
    else:
        sides = student.output, teacher.output
    rows = [side.detach().float().flatten(1, -2).mean(1) if side.ndim > 2 else side.detach().float() for side in sides]
    if any(each.ndim != 2 or not bool(torch.isfinite(each).all()) for each in rows) or len(rows[0]) != len(rows[1]):
        return None
    return float(cka(rows[0], rows[1]))


def plain(value: Any) -> Any:
    """A record as JSON has it: numbers of six digits; None in the place of what is not finite, absent in a mapping."""
    if isinstance(value, Tensor):
        return plain(value.tolist())  # pyright: ignore[reportUnknownMemberType]
    if isinstance(value, Mapping):
        items = {str(key): plain(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        return {key: item for key, item in items.items() if item is not None and item != {}}
    if isinstance(value, (list, tuple)):
        found = [plain(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
        return None if None in found else found
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _behind(term: FeatureTerm) -> norms.BatchNorm | None:
    """The batch norm behind the projector, if there is one."""
    norm = term.teacher_norm if term.inverted else term.student_norm
    return norm if isinstance(norm, norms.BatchNorm) else None


def _ridge(term: FeatureTerm, forces: Forces | None, width: int) -> float | None:
    """The weight decay in units of the relations' means; None where the loss is no multiple of a squared error.

    Behind a batch norm decay moves the lengths of columns alone, and there is no such point.
    """
    if forces is None or forces.decay is None or term.loss is not losses.mean_squared_error:
        return None
    if _behind(term) is not None or not forces.weight > 0:
        return None
    return forces.decay * width / (2 * forces.weight)
