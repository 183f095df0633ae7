"""Run terms and distillers compiled and not compiled, for two steps, and print what differs.

A line of JSON for each: its name, what is wrong with it (null: nothing), its seconds. In a process of its own, which
has no run-time shape checks: as a user has it. Arguments: the compiler's backend, and names of cells, or "quick" for
those in which the compiler's own passes can go wrong, each in one precision, or "rest" for the others
but losses and pools; without names all.
"""

import copy
import functools
import json
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import tiny
from limbeck import Distiller, FeatureTerm, LogitTerm, losses, norms, projectors
from limbeck.detection import DenseHeadTerm, FGDTerm, ForegroundTerm
from limbeck.features import compiler, pooling
from limbeck.features.taps import Captured
from limbeck.rivals import CRDTerm, HintTerm, ReviewTerm, VIDTerm, regressor
from limbeck.tasks import Classification
from limbeck.terms import LabelledLogitTerm, LossForm, RelationTerm

D_S, D_T, SIDE, CLASSES, IMAGES = 3, 4, 4, 5, 24
STEPS = (8, 5)  # rows of the two batches: the last one of an epoch is odd
BF16, FP16, F32 = "bf16", "fp16", "float32"
DTYPES = {BF16: torch.bfloat16, FP16: torch.float16, F32: torch.float32}
SCALES = {BF16: 1.0, FP16: 2.0**10, F32: 1.0}


class Cell(NamedTuple):
    """A term, and where it may differ.

    Attributes:
        make: Builds it.
        kind: Which features it reads: rows, maps or tokens.
        precisions: Of autocast; any but float32 shows whether a backward pass runs under it.
        whole: Whether it is one graph.
        widths: Of the two features.
        boxes: Whether the batch has boxes, and its outputs those of a detector.
    """

    make: Callable[[], Any]
    kind: str = "rows"
    precisions: tuple[str, ...] = (BF16,)
    whole: bool = True
    widths: tuple[int, int] = (D_S, D_T)
    boxes: bool = False


def feature(
    projector: Callable[[int, int], nn.Module] = projectors.linear,
    norm: Callable[[int], nn.Module] | None = norms.BatchNorm,
    loss: Any = losses.mean_squared_error,
    **more: Any,
) -> FeatureTerm:
    """With that norm on both sides; a loss of the correlation if it is called that."""
    widths = (D_T, D_S) if more.get("inverted") else (D_S, D_T)
    of = {"correlation_loss" if loss in (losses.log_correlation, losses.correlation_power) else "loss": loss}
    made = [norm(widths[1]) if norm is not None else None for _ in range(2)]
    return FeatureTerm("z", "z", projector=projector(*widths), student_norm=made[0], teacher_norm=made[1], **of, **more)


def dense(**more: Any) -> FeatureTerm:
    """Each position of a map a row."""
    return feature(**{"student_pool": pooling.spatial_positions, "teacher_pool": pooling.spatial_positions, **more})


def relation(loss: Any, pool: pooling.Pool = pooling.automatic) -> RelationTerm:
    return RelationTerm("z", "z", loss=loss, student_pool=pool, teacher_pool=pool)


def crd(labels: bool = False) -> CRDTerm:
    classes = torch.arange(IMAGES) % CLASSES if labels else None
    return CRDTerm("z", "z", d_s=D_S, d_t=D_T, images=IMAGES, negatives=6, width=5, labels=classes)


def two_parts() -> ForegroundTerm:
    inner = feature(loss=losses.log_correlation, student_pool=pooling.vector, teacher_pool=pooling.vector)
    return ForegroundTerm(inner, stride=8, background=0.5)


def norm_cells() -> dict[str, Cell]:
    """Those of rows; those that remember in float32 too, where a buffer could be written too early."""
    every: dict[str, Callable[[int], nn.Module]] = {
        "BatchNorm": norms.BatchNorm,
        "L2": lambda d: norms.L2(),
        "LayerNorm": norms.LayerNorm,
        "GroupNorm": lambda d: norms.GroupNorm(1, d),
        "ZCA": norms.ZCA,
        "Cholesky": norms.Cholesky,
        "ZCA, running": functools.partial(norms.ZCA, momentum=0.5),
        "Cholesky, running": functools.partial(norms.Cholesky, momentum=0.5),
    }
    return {
        f"norm {name}": Cell(
            functools.partial(feature, norm=norm), precisions=(BF16, F32) if "running" in name else (BF16,)
        )
        for name, norm in every.items()
    }


def projector_cells() -> dict[str, Cell]:
    every: dict[str, Callable[[int, int], nn.Module]] = {
        "mlp": functools.partial(projectors.mlp, hidden=5),
        "low_rank": functools.partial(projectors.low_rank, rank=2),
        "orthogonal": projectors.orthogonal,
        "ensemble": projectors.ensemble,
    }
    found = {f"projector {name}": Cell(functools.partial(feature, make)) for name, make in every.items()}
    same = functools.partial(feature, lambda *_: projectors.identity())
    # It looks at what it solves: there the graph may break.
    ridge = Cell(functools.partial(feature, projectors.Ridge), precisions=(BF16, F32), whole=False)
    return found | {"projector identity": Cell(same, widths=(D_T, D_T)), "projector Ridge": ridge}


def form_cells() -> dict[str, Cell]:
    """Blocks take gradients on the way: there the graph may break."""
    both, log = (BF16, FP16), losses.log_correlation
    return {
        "form direct": Cell(lambda: dense(form=LossForm.DIRECT, loss=log), "maps", both),
        "form moments": Cell(lambda: dense(form=LossForm.MOMENTS, loss=log), "maps", both),
        "form chunked": Cell(lambda: dense(form=LossForm.CHUNKED, loss=losses.log_sum), "maps", both, whole=False),
        "form chosen": Cell(lambda: dense(loss=log), "maps"),
        "form moments, inverted": Cell(lambda: dense(form=LossForm.MOMENTS, loss=log, inverted=True), "maps"),
        "form moments, ZCA before": Cell(lambda: dense(form=LossForm.MOMENTS, input_norm=norms.ZCA(D_S)), "maps"),
        "form chunked, LayerNorm": Cell(
            lambda: dense(form=LossForm.CHUNKED, norm=norms.LayerNorm, loss=losses.smooth_l1), "maps", whole=False
        ),
    }


def loss_cells() -> dict[str, Cell]:
    plain = functools.partial(feature, norm=None)
    features = {
        name: Cell(functools.partial(plain, loss=loss))
        for name, loss in {
            "squared_error": losses.squared_error,
            "l1": losses.l1,
            "smooth_l1": losses.smooth_l1,
            "cosine": losses.cosine,
            "log_sum": losses.log_sum,
            "feature_kl": losses.feature_kl,
            "gaussian_wasserstein": losses.gaussian_wasserstein,
        }.items()
        if name != "gaussian_wasserstein"
    }
    features["gaussian_wasserstein"] = Cell(lambda: dense(norm=None, loss=losses.gaussian_wasserstein), "maps")
    features["correlation_power"] = Cell(lambda: feature(loss=losses.correlation_power))
    features["decorrelation"] = Cell(lambda: relation(losses.decorrelation))
    logits = {
        loss.__name__: Cell(functools.partial(LogitTerm, loss=loss))
        for loss in (
            losses.kl_divergence,
            losses.standardized_kl,
            losses.pearson_distance,
            losses.multi_level_kl,
        )
    }
    labelled = {
        loss.__name__: Cell(functools.partial(LabelledLogitTerm, loss=loss))
        for loss in (losses.decoupled_kl, losses.normalized_kl)
    }
    return {f"loss {name}": cell for name, cell in (features | logits | labelled).items()}


def rival_cells() -> dict[str, Cell]:
    maps = pooling.unpooled
    return {
        "rival fitnet": Cell(
            lambda: HintTerm("z", "z", regressor=regressor(D_S, D_T, size_s=(SIDE, SIDE), size_t=(SIDE, SIDE))), "maps"
        ),
        "rival at": Cell(lambda: relation(losses.attention_transfer, maps), "maps"),
        "rival nst": Cell(lambda: relation(losses.neuron_selectivity, maps), "maps"),
        "rival sp": Cell(lambda: relation(losses.similarity_preserving)),
        "rival rkd": Cell(lambda: relation(losses.relational)),
        "rival pkt": Cell(lambda: relation(losses.probabilistic_transfer)),
        "rival cc": Cell(lambda: relation(losses.correlation_congruence)),
        "rival vid": Cell(lambda: VIDTerm(["z"], ["z"], d_s=[D_S], d_t=[D_T]), "maps"),
        "rival review": Cell(
            lambda: ReviewTerm(["z"] * 2, ["z"] * 2, d_s=[D_S] * 2, d_t=[D_T] * 2, loss=losses.hierarchical_context),
            "maps",
        ),
        # It looks at the numbers of the images, on a CPU.
        "rival crd": Cell(crd, precisions=(BF16, F32), whole=False),
        "rival crd, labels": Cell(functools.partial(crd, labels=True), whole=False),
        "rival fgd": Cell(lambda: FGDTerm("z", "z", d_s=D_S, d_t=D_T, stride=8), "maps", boxes=True),
    }


def pool_cells() -> dict[str, Cell]:
    every: dict[str, tuple[pooling.Pool, str]] = {
        "spatial_mean": (pooling.spatial_mean, "maps"),
        "spatial_mean_nhwc": (pooling.spatial_mean_nhwc, "nhwc"),
        "grid_positions": (pooling.grid_positions(2, 2), "maps"),
        "class_token": (pooling.class_token, "tokens"),
        "token_mean": (pooling.token_mean(1), "tokens"),
        "token_positions": (pooling.token_positions(1), "tokens"),
        "token_map": (pooling.token_map(1), "tokens"),
    }
    return {
        f"pooling {name}": Cell(
            functools.partial(relation, losses.attention_transfer, pool)
            if name == "token_map"
            else functools.partial(feature, student_pool=pool, teacher_pool=pool, loss=losses.log_correlation),
            kind,
        )
        for name, (pool, kind) in every.items()
    }


CELLS: dict[str, Cell] = {
    **form_cells(),
    **norm_cells(),
    **projector_cells(),
    **loss_cells(),
    **rival_cells(),
    **pool_cells(),
    "detection heads": Cell(lambda: DenseHeadTerm(3), "maps", boxes=True),
    # The number of places in boxes is a value of the batch.
    "detection foreground": Cell(two_parts, "maps", whole=False, boxes=True),
}


QUICK = (
    "form moments",
    "norm ZCA, running",
    "projector orthogonal",
    "rival sp",
    "model with a part in float32",
)
"""One of each: a function with a backward pass of its own, a buffer that a forward pass writes, products."""


def given(cell: Cell, step: int) -> tuple[Captured, Captured]:
    """What the models computed on a batch; the same images, in part, in both steps."""
    random = torch.Generator().manual_seed(step)
    rows = STEPS[step]

    def draw(d: int) -> Tensor:
        shape = {"rows": (d,), "maps": (d, SIDE, SIDE), "nhwc": (SIDE, SIDE, d), "tokens": (1 + SIDE * SIDE, d)}
        return torch.randn(rows, *shape[cell.kind], generator=random)

    index = torch.randperm(IMAGES, generator=random)[:rows]
    target: Tensor = index % CLASSES
    logits = (rows, 6, 3 + 4) if cell.boxes else (rows, CLASSES)
    if cell.boxes:
        target = torch.tensor([[2.0, 2.0, 20.0, 14.0, 1.0], [9.0, 9.0, 31.0, 31.0, 0.0]]).repeat(rows, 1, 1)
        target[0, :, 4] = -1
    sides = [
        Captured(torch.randn(logits, generator=random), {"z": draw(width)}, target, index) for width in cell.widths
    ]
    return sides[0], sides[1]


def steps(cell: Cell, subject: Any, call: Callable[..., Any], precision: str) -> dict[str, Tensor]:
    """All that two steps leave: losses, readings, gradients in units of the loss, buffers."""
    found: dict[str, Tensor] = {}
    scale = SCALES[precision]
    for step in range(len(STEPS)):
        torch.manual_seed(step)
        student, teacher = given(cell, step)
        z, y = student.features["z"].requires_grad_(), student.output.requires_grad_()
        if isinstance(subject, nn.Module):
            subject.zero_grad()
        with torch.autocast("cpu", dtype=DTYPES[precision], enabled=precision != F32):
            value = call(student, teacher)
        (value * scale).backward()
        leaves = {"the feature": z, "the output": y}
        leaves |= dict(subject.named_parameters()) if isinstance(subject, nn.Module) else {}
        found[f"loss {step}"] = value.detach()
        found |= {f"{name} {step}": reading.detach() for name, reading in subject.readings.items()}
        found |= {f"gradient of {n} {step}": x.grad.double() / scale for n, x in leaves.items() if x.grad is not None}
    return found | (dict(subject.named_buffers()) if isinstance(subject, nn.Module) else {})


def apart(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> tuple[float, str]:
    """The largest difference, relative to the norm of what differs, and what it is."""
    assert ours.keys() == theirs.keys(), f"{sorted(ours)} is not {sorted(theirs)}"
    found = {
        name: float((ours[name] - theirs[name]).double().norm() / theirs[name].double().norm().clamp(min=1e-6))
        for name in theirs
    }
    worst = max(found, key=lambda name: found[name] if found[name] == found[name] else float("inf"))
    return found[worst], worst


def compared(cell: Cell, precision: str, backend: str) -> str | None:
    """What is wrong with a cell: compiled by hand, or, with the real compiler, as a distiller does it."""
    torch.compiler.reset()
    torch.manual_seed(0)
    plain = cell.make()
    other = copy.deepcopy(plain)
    by_hand = backend != "inductor"
    call = torch.compile(other, backend=backend, fullgraph=cell.whole) if by_hand else compiler.Compiled(other)
    try:
        ours = steps(cell, other, call, precision)
    except Exception as error:  # whatever the compiler raises is what the test shall show
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    if isinstance(call, compiler.Compiled) and (call.plain or not call.graphs):
        return f"{call.plain} of {call.calls} calls ran without the compiler"
    found, worst = apart(ours, steps(cell, plain, plain, precision))
    # The real compiler leaves out roundings to the low precision that the plain step has.
    allowed = 1e-5 if by_hand else {F32: 1e-4, FP16: 1e-2, BF16: 5e-2}[precision]
    return None if found <= allowed else f"{worst} is {found:.2g} apart"


class Broken(nn.Module):
    """A model that the compiler cannot take as a whole: what is behind the cut is compiled as code of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = tiny.Net(width)

    def forward(self, x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return self.net(x)


def distiller(width: int, taps: tuple[str, ...] = (), *, broken: bool = False) -> Distiller:
    """A feature term for each tap; soft targets."""
    torch.manual_seed(0)
    terms: dict[str, Any] = {"logit": LogitTerm()}
    before = "net." if broken else ""
    for tap in taps:
        parts = {"projector": projectors.linear(width, 6), "loss": losses.mean_squared_error}
        made = {side: norms.BatchNorm(6) for side in ("student_norm", "teacher_norm")}
        terms[tap.replace(":", " ")] = FeatureTerm(before + tap, before + tap, **parts, **made)
    net = Broken if broken else tiny.Net
    return Distiller(net(width), net(6), Classification(), terms=terms).train()


def step_of(subject: Distiller, rows: int) -> dict[str, Tensor]:
    subject.zero_grad()
    images, target = tiny.images(rows, seed=rows)
    result = subject(tiny.Batch(images.contiguous(memory_format=torch.channels_last), target))
    result.loss.backward()
    gradients = {f"gradient of {n}": p.grad for n, p in subject.named_parameters() if p.grad is not None}
    return {"loss": result.loss.detach(), **result.parts, **result.readings, **gradients}


def in_turn(subjects: list[Distiller], rows: tuple[int, ...] = STEPS) -> str | None:
    """Distillers, one after the other in a process, as a comparison has them: each is compiled, and right."""
    for number, plain in enumerate(subjects):
        other = copy.deepcopy(plain)
        other.compile_parts(tiny.Batch(*tiny.images(8)))
        for count in rows:
            try:
                found, worst = apart(step_of(other, count), step_of(plain, count))
            except Exception as error:
                return f"distiller {number}: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
            if found > 1e-4:
                return f"distiller {number}: {worst} is {found:.2g} apart"
        for name, part in other.compiled.items():
            if part.plain or not part.graphs:
                return f"distiller {number}: {name}: {part.plain} of {part.calls} calls ran without the compiler"
    return None


def with_backend(backend: str, run: Callable[[], str | None]) -> str | None:
    torch.compiler.reset()
    before = compiler.lowered
    if backend != "inductor":
        compiler.lowered = torch._dynamo.lookup_backend(backend)
    try:
        return run()
    finally:
        compiler.lowered = before


def in_part_wide() -> str | None:
    """Limbeck's way to compile runs a backward pass without autocast, whatever model it is of."""
    layer = nn.Linear(6, 6)

    def forward(x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return layer(x).square().sum()

    found: list[dict[str, Tensor]] = []
    for call in (compiler.Compiled(forward), forward):
        layer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = call(torch.linspace(0, 1, 30).reshape(5, 6))
        value.backward()
        found.append({name: p.grad for name, p in layer.named_parameters() if p.grad is not None})
    wrong, worst = apart(found[0], found[1])
    return None if wrong < 1e-5 else f"{worst} is {wrong:.2g} apart"


def several() -> str | None:
    """Other taps of the same classes of models, and a model in parts."""
    taps: list[tuple[str, ...]] = [(), ("fc:input",), ("conv2", "fc:input")]
    by_hand = torch.compile(distiller(4, broken=True).student, backend=torch._dynamo.lookup_backend("eager"))
    by_hand(tiny.images(8)[0])  # code without hooks, of the same parts of the program
    wrong = in_turn([distiller(4, names) for names in taps])
    return wrong or in_turn([distiller(4, names, broken=True) for names in taps])


def nine() -> str | None:
    """More pairs than the compiler's limit for one piece of code, whole and in parts."""
    wrong = in_turn([distiller(2 * width) for width in range(1, 10)], rows=(8,))
    return wrong or in_turn([distiller(2 * width, broken=True) for width in range(1, 10)], rows=(8,))


DISTILLERS: dict[str, Callable[[str], str | None]] = {
    "model with a part in float32": lambda backend: with_backend(backend, in_part_wide),
    # What is shared by mistake is shared before any pass over a graph.
    "distillers in turn": lambda backend: with_backend("inductor" if backend == "inductor" else "eager", several),
    "nine distillers": lambda backend: with_backend("eager", nine),
}


def main() -> None:
    backend, *names = sys.argv[1:]
    shortly = names == ["quick"]
    # Losses and pools by themselves have tests of their own.
    rest = [name for name in [*CELLS, *DISTILLERS] if name not in QUICK and not name.startswith(("loss ", "pooling "))]
    names = {("quick",): [*QUICK], ("rest",): rest, (): [*CELLS, *DISTILLERS]}.get(tuple(names), names)
    for name in names:
        precisions = CELLS[name].precisions if name in CELLS else (F32,)
        precisions = precisions[:1] if shortly else precisions
        for precision in precisions if backend != "inductor" or name in DISTILLERS else tuple(DTYPES):
            since = time.process_time()
            wrong = DISTILLERS[name](backend) if name in DISTILLERS else compared(CELLS[name], precision, backend)
            print(json.dumps([f"{name}, {precision}", wrong, round(time.process_time() - since, 1)]), flush=True)


if __name__ == "__main__":
    main()
