"""Whole trainings on unequal shares of each batch, by each process of ``test_processes``; one process has all of it."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

import tiny
from limbeck import Distiller, FeatureTerm, LogitTerm, fit, losses, norms, projectors
from limbeck.distributed import collectives
from limbeck.errors import UserError
from limbeck.features import pooling
from limbeck.logs.runlog import RunLog
from limbeck.models import synchronized
from limbeck.rivals import CRDTerm
from limbeck.storage.checkpoint import Checkpoints
from limbeck.tasks import Classification, LabelFree
from limbeck.terms import RelationTerm
from limbeck.training import meter, optim
from limbeck.training.evaluation import evaluate

DOUBLE = torch.float64
IMAGES, SIZE, BATCHES, EPOCHS = (
    40,
    9,
    5,
    2,
)  # four batches of nine and one of four: with four processes one of them has no image
SHARES = {  # of each batch in turn: how it is cut
    2: [(0.2, 1.0), (0.0, 1.0), (1.0, 1.0), (0.5, 1.0)],
    4: [(0.1, 0.3, 0.3, 1.0), (0.25, 0.5, 0.75, 1.0), (0.0, 0.0, 0.2, 1.0), (0.6, 0.7, 1.0, 1.0)],
}


class Indexed(NamedTuple):
    images: Tensor
    target: Tensor | None
    numbers: Tensor


class Ragged:
    """Every batch is cut in another way, the last one of an epoch is short, and some shares are empty."""

    def __init__(self, *, labels: bool = True, even: bool = False) -> None:
        self.x, self.target = tiny.images(IMAGES)
        self.labels, self.even = labels, even
        self.epoch, self.rank, self.world_size = 0, 0, 1

    def __len__(self) -> int:
        return BATCHES

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def shard(self, rank: int, world_size: int) -> "Ragged":
        self.rank, self.world_size = rank, world_size
        return self

    def __iter__(self) -> Iterator[Indexed]:
        order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(self.epoch))
        for step, batch in enumerate(order.split(SIZE)):
            own = batch
            if self.world_size > 1:
                shares = SHARES[self.world_size][step % 4]
                if self.even:
                    shares = tuple((rank + 1) / self.world_size for rank in range(self.world_size))
                edges = [0, *(round(share * len(batch)) for share in shares)]
                own = batch[edges[self.rank] : edges[self.rank + 1]]
            yield Indexed(self.x[own].double(), self.target[own] if self.labels else None, own)


def val_batches(*, labels: bool = True) -> list[Indexed]:
    """Batches of eight, the last one short."""
    x, target = tiny.images(20, seed=1)
    parts = zip(x.double().split(8), target.split(8), torch.arange(20).split(8), strict=True)
    return [Indexed(a, b if labels else None, c) for a, b, c in parts]


def feature(tap: str, d_s: int, d_t: int, *, dense: bool = False, **loss: Any) -> FeatureTerm:
    pool = pooling.spatial_positions if dense else pooling.automatic
    return FeatureTerm(
        tap,
        tap,
        projector=projectors.linear(d_s, d_t),
        student_norm=norms.BatchNorm(d_t),
        teacher_norm=norms.BatchNorm(d_t),
        student_pool=pool,
        teacher_pool=pool,
        **loss,
    )


def crd() -> CRDTerm:
    term = CRDTerm("fc:input", "fc:input", d_s=4, d_t=6, images=IMAGES, width=5, negatives=IMAGES - 1)
    # Drawn by each process for its own rows they differ from those of one process; all other images do not.
    term.draw_negatives = others
    return term


def others(index: Tensor) -> Tensor:
    """All other images for each of the given ones."""
    numbers = torch.arange(IMAGES)
    return numbers.expand(len(index), -1)[numbers != index[:, None]].reshape(len(index), IMAGES - 1)


TERMS: dict[str, Callable[[], dict[str, Any]]] = {
    "alone": dict,
    "projector": lambda: {"feature": feature("fc:input", 4, 6, loss=losses.log_sum)},
    "moments": lambda: {"feature": feature("conv2", 4, 6, dense=True, correlation_loss=losses.log_correlation)},
    "dense in blocks": lambda: {"feature": feature("conv2", 4, 6, dense=True, loss=losses.log_sum)},
    "relation": lambda: {"relation": RelationTerm("conv2", "conv2", loss=losses.similarity_preserving)},
    "logit": lambda: {"logit": LogitTerm()},
    "crd": lambda: {"crd": crd()},
    "several": lambda: {
        "feature": feature("fc:input", 4, 6, correlation_loss=losses.log_correlation),
        "dense": feature("conv2", 4, 6, dense=True, loss=losses.log_sum),
        "logit": LogitTerm(),
    },
}


def distiller(terms: str, *, norm: bool = False, labels: bool = True) -> Distiller:
    torch.manual_seed(0)
    student, teacher = tiny.Net(4, norm=norm), tiny.Net(6)
    if norm and collectives.world_size() > 1:
        student = synchronized(student)
    made = TERMS[terms]()
    task = Classification() if labels else LabelFree()
    return Distiller(student, teacher if made else None, task, terms=made, weights=dict.fromkeys(made, 0.3)).double()


def training(folder: Path, terms: str, *, norm: bool = False, labels: bool = True, **more: Any) -> dict[str, Any]:
    """Gradient of the first step, weights, counters and figures of a whole training, and what its log says."""
    subject = distiller(terms, norm=norm, labels=labels)
    first: dict[str, Tensor] = {}

    def look(step: int, epoch: float) -> None:
        del epoch
        if step == 1:
            named = [*subject.student.named_parameters(), *subject.term_modules.named_parameters()]
            first.update({f"after one step {name}": parameter.detach().clone() for name, parameter in named})

    looking = Looking(look)
    result = fit(
        subject,
        Ragged(labels=labels),
        val_batches(labels=labels),
        epochs=EPOCHS,
        optimizer=optim.sgd(subject, lr=0.05),
        rate=optim.cosine_decay(EPOCHS, warmup=1),
        clip=2.0,
        log=RunLog(folder),
        probe=looking,
        cpu=True,
        **more,
    )
    state = {**subject.student.state_dict(prefix="s."), **subject.term_modules.state_dict(prefix="t.")}
    return {
        "state": {**state, **first, **result.student.state_dict(prefix="a.")},
        "counters": (result.counters.step, result.counters.images),
        "figures": {"last": result.last, "best": result.best},
    }


class Looking:
    """A ``Probing`` that calls a function."""

    def __init__(self, look: Callable[[int, float], None]) -> None:
        self.look = look

    def __call__(self, step: int, epoch: float) -> None:
        self.look(step, epoch)

    def run(self, step: int, epoch: float) -> None:
        self.look(step, epoch)


CASES: dict[str, dict[str, Any]] = {
    **{name: {"terms": name} for name in ("alone", "projector", "relation", "crd", "several")},
    "several, in two": {"terms": "several", "accumulate": 2},
    "crd, in two": {"terms": "crd", "accumulate": 2},
    "several, without labels": {"terms": "several", "labels": False},
    "own norm": {"terms": "several", "norm": True, "ema_decay": 0.7},
    "own norm alone": {"terms": "alone", "norm": True},
}


def everything(folder: Path) -> dict[str, Any]:
    return {name: training(folder / name, **case) for name, case in CASES.items()}


def local_norm(folder: Path) -> dict[str, Any]:
    """A student whose own batch norm sees the images of its process: what is scored, and what is kept."""
    torch.manual_seed(0)
    subject = Distiller(tiny.Net(4, norm=True), None, Classification()).double()
    log, kept = RunLog(folder), Checkpoints(folder / "checkpoint")
    loader, val = Ragged(even=True), val_batches()
    result = fit(subject, loader, val, epochs=1, log=log, checkpoints=kept, ema_decay=0.7, cpu=True)
    state = result.student.state_dict()
    with collectives.alone():
        figures = evaluate(result.student, Classification(), val, torch.device("cpu"))
    return {"state": state, "last": result.last, "here": figures}


def refused() -> str:
    """Processes whose loaders do not have as many batches."""

    class Longer(Ragged):
        def __len__(self) -> int:
            return 5 + self.rank

    try:
        fit(distiller("alone"), Longer(), epochs=1, cpu=True)
    except UserError as error:
        return str(error)
    return "not refused"


def shares() -> tuple[float, float]:
    """Means of unlike shares, the first one empty: the processes' mean of what is made of them, and all rows."""
    rank = collectives.rank()
    mean, rows = collectives.share_of_mean(torch.tensor(10.0 * rank), rank, torch.device("cpu"))
    assert rows is not None
    return float(collectives.sum_across(mean)) / collectives.world_size(), float(rows)


def recorded(folder: Path) -> list[str]:
    """The collectives of this process in a training with everything, in their order."""
    seen: list[str] = []
    originals = {name: getattr(dist, name) for name in ("all_reduce", "all_gather", "broadcast", "barrier")}

    def recording(name: str) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            tensors = [arg for arg in args if isinstance(arg, Tensor)]
            seen.append(f"{name} {[(tuple(t.shape), str(t.dtype)) for t in tensors]}")
            return originals[name](*args, **more)

        return call

    was, meter.LOG_EVERY = meter.LOG_EVERY, 2
    try:
        for name in originals:
            setattr(dist, name, recording(name))
        for epochs in (1, 2):  # the second goes on from the checkpoint of the first
            subject = distiller("several", norm=True)
            looking = Looking(lambda step, epoch: seen.append(f"probe {step} {epoch:.3f}"))
            fit(
                subject,
                Ragged(),
                val_batches(),
                epochs=epochs,
                optimizer=optim.sgd(subject, lr=0.05),
                accumulate=2,
                ema_decay=0.7,
                clip=1.0,
                log=RunLog(folder),
                checkpoints=Checkpoints(folder / "checkpoint"),
                on_best=lambda student: None,
                probe=looking,
                cpu=True,
            )
        fit(distiller("several", labels=False), Ragged(labels=False), val_batches(labels=False), epochs=1, cpu=True)
    finally:
        meter.LOG_EVERY = was
        for name, original in originals.items():
            setattr(dist, name, original)
    return seen


def work(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
    os.environ |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size)
    found = {
        "cases": everything(folder / "several"),
        "local norm": local_norm(folder / "local"),
        "refused": refused(),
        "shares": shares(),
        "recorded": recorded(folder / "recorded"),
    }
    torch.save(found, folder / f"rank{rank}.pt")
    collectives.barrier()
    dist.destroy_process_group()
