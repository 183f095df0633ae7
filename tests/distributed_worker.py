"""What each of several processes does in ``test_distributed``; on one process the same calls give what is expected."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import tiny
from limbeck import Distiller, FeatureTerm, fit, losses, norms, projectors
from limbeck.distributed import collectives
from limbeck.errors import UserError
from limbeck.features import pooling
from limbeck.features.taps import Captured
from limbeck.logs.runlog import RunLog
from limbeck.storage.checkpoint import Checkpoints
from limbeck.tasks import Classification, LabelFree
from limbeck.training import optim
from limbeck.training.evaluation import evaluate, evaluate_terms
from tiny import Batch, Loader

CPU = torch.device("cpu")
SPLIT = [3, 5]  # unequal local batches
DOUBLE = torch.float64


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def own(x: Tensor, split: list[int]) -> Tensor:
    """The stretch of this process."""
    return x.split(split)[collectives.rank()] if collectives.world_size() > 1 else x


def averaged(grad: Tensor | None) -> Tensor:
    """What DDP does to a gradient."""
    assert grad is not None
    return collectives.sum_across(grad) / collectives.world_size()


def gather(split: list[int]) -> dict[str, Tensor]:
    x = own(draw(sum(split), 2, 3, seed=0), split).clone().requires_grad_()
    rows = collectives.gather_rows(x)
    ((rows**3) * draw(*rows.shape, seed=1)).sum().backward()
    grads = torch.zeros(sum(split), 2, 3, dtype=DOUBLE)
    assert x.grad is not None
    own(grads, split).copy_(x.grad)
    return {"rows": rows.detach(), "grad": averaged(grads)}


def terms() -> dict[str, FeatureTerm]:
    def build(norm: Callable[[], nn.Module] | None, pool: pooling.Pool, **loss: Any) -> FeatureTerm:
        torch.manual_seed(0)
        student_norm, teacher_norm = (norm(), norm()) if norm is not None else (None, None)
        projector = projectors.mlp(3, 5, hidden=4).double()
        return FeatureTerm(
            "z",
            "z",
            projector=projector,
            student_norm=student_norm,
            teacher_norm=teacher_norm,
            student_pool=pool,
            teacher_pool=pool,
            **loss,
        )

    def batch_norm() -> nn.Module:
        return norms.BatchNorm(5)

    return {
        "log_sum": build(batch_norm, pooling.automatic, loss=losses.log_sum),
        "log_correlation": build(batch_norm, pooling.automatic, correlation_loss=losses.log_correlation),
        "dense": build(batch_norm, pooling.spatial_positions, loss=losses.log_sum),
        "plain sum": build(None, pooling.automatic, loss=losses.squared_error),
    }


def feature_terms() -> dict[str, Tensor]:
    """Value, readings and gradients of each term on unequal shares of a batch."""
    found: dict[str, Tensor] = {}
    for name, term in terms().items():
        z_s = own(draw(sum(SPLIT), 3, 2, 2, seed=2), SPLIT).clone().requires_grad_()
        z_t = own(draw(sum(SPLIT), 5, 2, 2, seed=3), SPLIT)
        value = term(Captured(z_s, {"z": z_s}), Captured(z_t, {"z": z_t}))
        value.backward()
        found[f"{name} value"] = value.detach()
        found |= {f"{name} {key}": reading for key, reading in term.readings.items()}
        found |= {f"{name} d{key}": averaged(p.grad) for key, p in term.named_parameters()}
        grads = torch.zeros(sum(SPLIT), 3, 2, 2, dtype=DOUBLE)
        assert z_s.grad is not None
        own(grads, SPLIT).copy_(z_s.grad)
        found[f"{name} dz"] = averaged(grads)
    return found


def distiller(*, correlation: bool = True) -> Distiller:
    """The same on every process only after DDP has made it so."""
    return tiny.distiller(seed=collectives.rank(), correlation=correlation).double()


def teacher_of(subject: Distiller) -> nn.Module:
    assert subject.teacher is not None
    return subject.teacher.model


def wrapped(correlation: bool) -> dict[str, Tensor]:
    """Gradients of the whole distiller."""
    subject = distiller(correlation=correlation)
    model = nn.parallel.DistributedDataParallel(subject) if collectives.world_size() > 1 else subject
    x, target = tiny.images(8)
    result = model(Batch(own(x.double(), [4, 4]), own(target, [4, 4])))
    result.loss.backward()
    grads = {name: p.grad for name, p in subject.trainable_parameters().items() if p.grad is not None}
    assert len(grads) == len(subject.trainable_parameters())
    return grads | {f"part {name}": averaged(part) for name, part in result.parts.items()}


def training(folder: Path, *, images: int = 40, size: int = 8, **more: Any) -> dict[str, Any]:
    """Four epochs with everything that the loop has."""
    subject = distiller()
    optimizer = optim.sgd(subject, lr=0.1)
    result = fit(
        subject,
        Loader(images, size, dtype=DOUBLE),
        val_batches(20),
        epochs=4,
        optimizer=optimizer,
        rate=optim.cosine_decay(4, warmup=1),
        clip=1.0,
        ema_decay=0.8,
        log=RunLog(folder),
        cpu=True,
        **more,
    )
    state = {**subject.student.state_dict(prefix="s."), **subject.term_modules.state_dict(prefix="t.")}
    counters = (result.counters.step, result.counters.images)
    return {
        "state": state | result.student.state_dict(prefix="a."),
        "last": result.last,
        "best": result.best,
        "counters": counters,
    }


def as_large(folder: Path) -> dict[str, Any]:
    """On one process in batches of 16, on several in two of 8 that count as one."""
    if collectives.world_size() == 1:
        return training(folder, images=32, size=16)
    return training(folder, images=32, size=8, accumulate=2)


def val_batches(count: int) -> list[Batch]:
    """Batches of eight, the last one short."""
    x, target = tiny.images(count, seed=1)
    return [Batch(a, b) for a, b in zip(x.double().split(8), target.split(8), strict=True)] if count else []


def evaluations() -> dict[str, dict[str, float]]:
    torch.manual_seed(0)  # the same model on every process: nothing else makes it so here
    subject = tiny.distiller(correlation=False).double()
    free = Distiller(subject.student, teacher_of(subject), LabelFree(), terms=subject.terms)
    found = {f"{n} images": evaluate(subject.student, Classification(), val_batches(n), CPU) for n in (0, 5, 20)}
    return found | {"label-free": evaluate_terms(free, free.student, val_batches(20), CPU)}


def resumed(folder: Path) -> dict[str, Tensor]:
    """One epoch, then two more in a new distiller that finds the checkpoint."""
    for epochs in (1, 3):
        subject = distiller()
        loader = Loader(16, 8, dtype=DOUBLE)
        fit(subject, loader, epochs=epochs, log=RunLog(folder), checkpoints=Checkpoints(folder), cpu=True)
    return dict(subject.student.state_dict())


def everything(folder: Path) -> dict[str, Any]:
    return {
        "gather": gather(SPLIT),
        "gather nothing": gather([8, 0]),
        "terms": feature_terms(),
        "wrapped log_sum": wrapped(correlation=False),
        "wrapped log_correlation": wrapped(correlation=True),
        "fit": training(folder / "fit"),
        "fit accumulating": training(folder / "accumulating", accumulate=2),
        "fit large": as_large(folder / "large"),
        "evaluations": evaluations(),
        "resumed": resumed(folder / "resumed"),
    }


def only_here(folder: Path) -> dict[str, Any]:
    """What has no counterpart on one process."""
    rank = collectives.rank()
    values = torch.tensor([1.0 + rank, 2.0])
    loader = DataLoader(TensorDataset(*tiny.images(24)), batch_size=4, shuffle=True)
    counters = fit(tiny.distiller(seed=rank), loader, epochs=1, cpu=True).counters
    with collectives.alone():
        alone = (collectives.world_size(), collectives.rank(), collectives.gather_rows(values).tolist())
    return {
        "sum": collectives.sum_across(values).tolist(),
        "unchanged": values.tolist(),
        "mean": collectives.mean_across([1.0 + rank, 2.0], CPU),
        "alone": alone,
        "told": [
            collectives.from_first(texts[rank], CPU) for texts in (("\u00e4 0", ""), ("", "1"), ("short", "longer"))
        ],
        "loader": (counters.step, counters.images),
    }


def refused() -> str:
    """Processes that Accelerate does not know of."""
    try:
        fit(tiny.distiller(), Loader(16, 8), epochs=1, cpu=True)
    except UserError as error:
        return str(error)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    return "not refused"


def work(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size)
    message = refused()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
    os.environ |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    found = everything(folder / "two") | {"here": only_here(folder), "refused": message}
    torch.save(found, folder / f"rank{rank}.pt")
    collectives.barrier()
    dist.destroy_process_group()
