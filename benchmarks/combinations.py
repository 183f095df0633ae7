"""Every projector with every norm and every distance of a feature term: does it train?

    python benchmarks/combinations.py > docs/results/combinations.md

A tiny student takes five SGD steps with the term as its only loss, on maps (each position a row), tokens (each token a
row), tokens that are averaged, and vectors; in float32 and under bf16 autocast; in every form that applies. It trains
if in every step the loss and the gradients of the student and of the projector are finite, and the student's is not
zero. What a term refuses is shown with its reason; anything else is a failure, and makes the exit status 1. It prints
Markdown; progress goes to stderr. Some minutes on one thread of a CPU.
"""

import argparse
import contextlib
import functools
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from limbeck import FeatureTerm, losses, norms, projectors
from limbeck.errors import UserError
from limbeck.features import pooling
from limbeck.features.taps import Captured
from limbeck.terms import CorrelationLoss, Loss, LossForm

N, D_S, D_T, IN = 24, 6, 8, 3
STEPS, RATE = 5, 1e-3
SYMBOL = {LossForm.DIRECT: "d", LossForm.MOMENTS: "m", LossForm.CHUNKED: "c"}


class Side(NamedTuple):
    """Makes the norms of a term from the widths in front of the projector and behind it."""

    student: Callable[[int], nn.Module] | None = None
    teacher: Callable[[int], nn.Module] | None = None
    in_front: Callable[[int], nn.Module] | None = None


def both(make: Callable[[int], nn.Module], in_front: Callable[[int], nn.Module] | None = None) -> Side:
    return Side(make, make, in_front)


class Projection(NamedTuple):
    build: Callable[[int, int], nn.Module]
    d_s: int = D_S
    inverted: bool = False


PROJECTORS = {
    "identity": Projection(lambda d_s, d_t: projectors.identity(), d_s=D_T),
    "linear": Projection(projectors.linear),
    "mlp": Projection(functools.partial(projectors.mlp, hidden=10)),
    "orthogonal": Projection(projectors.orthogonal),
    "ensemble": Projection(projectors.ensemble),
    "low_rank": Projection(functools.partial(projectors.low_rank, rank=4)),
    "ridge": Projection(projectors.Ridge),
    "linear, inverted": Projection(projectors.linear, inverted=True),
}
NORMS = {
    "none": Side(),
    "L2": both(lambda d: norms.L2()),
    "batch": both(norms.BatchNorm),
    "group": both(lambda d: norms.GroupNorm(2, d)),
    "layer": both(norms.LayerNorm),
    "layer, teacher only": Side(teacher=norms.LayerNorm),
    "ZCA": both(norms.ZCA),
    "Cholesky": both(norms.Cholesky),
    "ZCA in front": Side(in_front=norms.ZCA),
    "ZCA in front, batch": both(norms.BatchNorm, in_front=norms.ZCA),
}
ELEMENTWISE: dict[str, Loss] = {
    "squared_error": losses.squared_error,
    "mean_squared_error": losses.mean_squared_error,
    "l1": losses.l1,
    "smooth_l1": losses.smooth_l1,
    "cosine": losses.cosine,
    "log_sum": losses.log_sum,
    "feature_kl": functools.partial(losses.feature_kl, temperature=1.0),
    "gaussian_wasserstein": losses.gaussian_wasserstein,
}
CORRELATION: dict[str, CorrelationLoss] = {
    "log_correlation": losses.log_correlation,
    "correlation_power": functools.partial(losses.correlation_power, power=2.0),
}
DISTANCES = [*ELEMENTWISE, *CORRELATION]


class Feature(NamedTuple):
    """What a model gives, how it is pooled, and a student that makes it from an input of three channels."""

    shape: Callable[[int], tuple[int, ...]]
    student: Callable[[int], nn.Module]
    pool: pooling.Pool


FEATURES = {
    "maps": Feature(lambda c: (N, c, 2, 2), lambda d: nn.Conv2d(IN, d, 1), pooling.spatial_positions),
    "tokens": Feature(lambda c: (N, 5, c), lambda d: nn.Linear(IN, d), pooling.token_positions(1)),
    "averaged tokens": Feature(lambda c: (N, 5, c), lambda d: nn.Linear(IN, d), pooling.token_mean(1)),
    "vectors": Feature(lambda c: (N, c), lambda d: nn.Linear(IN, d), pooling.vector),
}
PRECISIONS = {"float32": False, "bf16 autocast": True}


class Outcome(NamedTuple):
    """Of one run: what it was, and why it did not train."""

    form: LossForm
    feature: str
    precision: str
    refused: str | None = None
    failed: str | None = None


def term(projector: str, norm: str, distance: str, form: LossForm, pool: pooling.Pool) -> FeatureTerm:
    projection, side = PROJECTORS[projector], NORMS[norm]
    source, target = (D_T, projection.d_s) if projection.inverted else (projection.d_s, D_T)
    return FeatureTerm(
        "z",
        "z",
        projector=projection.build(source, target),
        student_norm=side.student(target) if side.student else None,
        teacher_norm=side.teacher(target) if side.teacher else None,
        input_norm=side.in_front(source) if side.in_front else None,
        loss=ELEMENTWISE.get(distance),
        correlation_loss=CORRELATION.get(distance),
        student_pool=pool,
        teacher_pool=pool,
        inverted=projection.inverted,
        form=form,
    )


def fault(value: Tensor, student: nn.Module, subject: FeatureTerm) -> str | None:
    """What is wrong after a backward pass."""
    if value.dtype != torch.float32 or not value.isfinite():
        return f"loss {value.item()}, {value.dtype}"
    for name, parameter in [*student.named_parameters(prefix="student"), *subject.named_parameters()]:
        if parameter.grad is None:
            return f"{name} has no gradient"
        if not parameter.grad.isfinite().all():
            return f"the gradient of {name} is not finite"
    if not any(parameter.grad is not None and parameter.grad.any() for parameter in student.parameters()):
        return "the gradient of the student is zero"
    return None


def train(projector: str, norm: str, distance: str, form: LossForm, feature: str, precision: str) -> Outcome | None:
    """Five steps; None if the form does not apply."""
    torch.manual_seed(0)
    outcome = Outcome(form, feature, precision)
    shape, build, pool = FEATURES[feature]
    student = build(PROJECTORS[projector].d_s)
    try:
        subject = term(projector, norm, distance, form, pool)
        optimizer = torch.optim.SGD([*student.parameters(), *subject.parameters()], lr=RATE, momentum=0.9)
        for _ in range(STEPS):
            x, z_t = torch.randn(shape(IN)), 2 * torch.randn(shape(D_T)) + 1
            with torch.autocast("cpu", dtype=torch.bfloat16) if PRECISIONS[precision] else contextlib.nullcontext():
                z_s = student(x)
                z_t = z_t.to(z_s.dtype)  # the teacher runs under autocast as well
                value = subject(Captured(z_s, {"z": z_s}), Captured(z_t, {"z": z_t}))
            if subject.form_used is not form:
                return outcome._replace(failed=f"took the form {subject.form_used.value}")
            optimizer.zero_grad()
            value.backward()
            wrong = fault(value.detach(), student, subject)
            if wrong is not None:
                return outcome._replace(failed=wrong)
            optimizer.step()
    except UserError as error:
        message = str(error)
        return None if "form does not apply" in message else outcome._replace(refused=message)
    except Exception as error:  # whatever it is, it is what this is to show
        return outcome._replace(failed=f"{type(error).__name__}: {str(error).splitlines()[0]}")
    return outcome


def outcomes(projector: str, norm: str, distance: str) -> list[Outcome]:
    """All runs of one combination."""
    runs = itertools.product(LossForm, FEATURES, PRECISIONS)
    found = [train(projector, norm, distance, form, feature, precision) for form, feature, precision in runs]
    ran = [outcome for outcome in found if outcome is not None]
    trained = {(o.feature, o.precision) for o in ran if o.form is LossForm.DIRECT and not o.refused}
    # What one form computes, another must not refuse.
    return [o._replace(failed=o.refused) if o.refused and (o.feature, o.precision) in trained else o for o in ran]


def verdict(found: list[Outcome]) -> str:
    if any(outcome.failed for outcome in found):
        return "FAIL"
    return "refused" if all(outcome.refused for outcome in found) else "ok"


def cell(found: list[Outcome], reasons: list[str]) -> str:
    """The verdict, the forms and the numbers of the reasons."""
    forms = [SYMBOL[form] for form in LossForm if any(o.form is form and not o.refused for o in found)]
    parts = ["FAIL" if verdict(found) == "FAIL" else "", "ok " + "/".join(forms) if verdict(found) == "ok" else ""]
    numbers: list[int] = []
    for what in dict.fromkeys(o.failed or o.refused for o in found if o.failed or o.refused):
        assert what is not None
        where = [o.feature for o in found if what in (o.failed, o.refused)]
        some = "" if set(where) == set(FEATURES) else f" ({', '.join(dict.fromkeys(where))})"
        reason = what + some
        if reason not in reasons:
            reasons.append(reason)
        numbers.append(reasons.index(reason) + 1)
    return " ".join(part for part in [*parts, *(f"[{number}]" for number in numbers)] if part)


def table(distance: str, cells: dict[str, dict[str, str]]) -> str:
    rows = [["projector", *NORMS], *([name, *row.values()] for name, row in cells.items())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return f"## {distance}\n\n" + "\n".join(lines) + "\n"


HEAD = f"""# Projectors, norms and distances: what trains with what

Printed by `python benchmarks/combinations.py`: do not edit. torch {torch.__version__}, CPU.

Rows are projectors, columns norms (on both sides where nothing else is said; "in front" is in front of the projector).
`ok` is five SGD steps of a tiny student, with finite loss, finite gradients of student and projector and a gradient of
the student that is not zero in each of them: on {", ".join(FEATURES)}, each in float32 and under
bf16 autocast, in each form named: d direct, m from moments, c in blocks (chunked). Numbers in brackets refer to the
reasons at the end. The sizes: {N} samples, 4 positions or tokens, {D_S} channels of the student, {D_T} of the teacher
({D_T} of both without a projector).
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--distance", choices=DISTANCES, action="append", help="only this one; may be repeated")
    parser.add_argument("--out", type=Path, help="the outcome of every run, as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    started = time.perf_counter()
    print(HEAD)
    reasons: list[str] = []
    verdicts: Counter[str] = Counter()
    records: list[dict[str, object]] = []
    for distance in args.distance or DISTANCES:
        cells: dict[str, dict[str, str]] = {}
        for projector in PROJECTORS:
            cells[projector] = {}
            for norm in NORMS:
                found = outcomes(projector, norm, distance)
                verdicts[verdict(found)] += 1
                cells[projector][norm] = cell(found, reasons)
                names = {"projector": projector, "norm": norm, "distance": distance}
                records += [names | outcome._asdict() | {"form": outcome.form.value} for outcome in found]
        print(table(distance, cells))
        print(f"{distance}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    print("## Reasons\n")
    print("\n".join(f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)) or "None.")
    runs = f"{len(records)} runs of {STEPS} steps"
    print(f"\n{verdicts['ok']} combinations train, {verdicts['refused']} are refused, {verdicts['FAIL']} fail; {runs}.")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    return 1 if verdicts["FAIL"] else 0


if __name__ == "__main__":
    sys.exit(main())
