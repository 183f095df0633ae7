"""Trainings whose parameters are cut up, by each process of ``test_sharding``; one process gives what is expected."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import processes_worker
import tiny
from limbeck import Distiller, FeatureTerm, LogitTerm, fit, losses, norms, projectors
from limbeck.distiller import shard_distiller
from limbeck.distributed import collectives, sharding
from limbeck.logs.runlog import RunLog
from limbeck.models import synchronized
from limbeck.storage.checkpoint import Checkpoints
from limbeck.tasks import Classification, LabelFree
from limbeck.terms import LossForm, RelationTerm
from limbeck.training import optim
from limbeck.training.evaluation import evaluate
from processes_worker import Ragged, feature, val_batches

CPU = torch.device("cpu")
EPOCHS = 2


class Transformer(nn.Module):
    """Two blocks of attention over patches, a class token and a classifier."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 2, stride=2)
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.fc = nn.Linear(width, tiny.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.fc(x[:, 0])


def direct() -> FeatureTerm:
    return FeatureTerm(
        "fc:input",
        "fc:input",
        projector=projectors.mlp(4, 6, hidden=5),
        student_norm=norms.LayerNorm(6),
        teacher_norm=norms.LayerNorm(6),
        loss=losses.smooth_l1,
        form=LossForm.DIRECT,
    )


def whitened() -> FeatureTerm:
    return FeatureTerm(
        "fc:input",
        "fc:input",
        projector=projectors.linear(4, 6, bias=True),
        input_norm=norms.ZCA(4, momentum=0.5),
        loss=losses.mean_squared_error,
    )


TERMS: dict[str, Callable[[], dict[str, Any]]] = {
    **processes_worker.TERMS,
    "direct": lambda: {"feature": direct()},
    "norm in front": lambda: {"feature": whitened()},
    "hint inside": lambda: {"feature": feature("conv2", 4, 6, dense=True, loss=losses.mean_squared_error)},
    "batch of logits": lambda: {"logit": LogitTerm(losses.pearson_distance)},
    "relation and all": lambda: {
        "relation": RelationTerm("conv2", "conv2", loss=losses.similarity_preserving),
        "moments": feature("fc:input", 4, 6, correlation_loss=losses.log_correlation),
        "logit": LogitTerm(),
        "crd": processes_worker.crd(),
    },
}


def distiller(terms: str, *, norm: bool = False, labels: bool = True, vit: bool = False) -> Distiller:
    torch.manual_seed(0)
    student: nn.Module = Transformer(4) if vit else tiny.Net(4, norm=norm)
    teacher: nn.Module = Transformer(6) if vit else tiny.Net(6, norm=norm)
    if norm and collectives.world_size() > 1:
        student = synchronized(student)
    if terms == "hint inside":
        student.fc = nn.Identity()  # nothing behind the feature trains, and no loss reads the output
    made = TERMS[terms]()
    task = Classification() if labels else LabelFree()
    return Distiller(student, teacher if made else None, task, terms=made, weights=dict.fromkeys(made, 0.3)).double()


def adamw(subject: Distiller) -> torch.optim.Optimizer:
    return optim.adamw(subject, lr=0.01, weight_decay=0.1)


CASES: dict[str, dict[str, Any]] = {
    **{name: {"terms": name} for name in ("alone", "projector", "direct", "norm in front")},
    **{name: {"terms": name} for name in ("batch of logits", "relation and all")},
    "hint inside": {"terms": "hint inside", "labels": False},
    "without labels": {"terms": "several", "labels": False},
    "own norm": {"terms": "several", "norm": True, "ema_decay": 0.7},
    "vit and a projector": {"terms": "projector", "vit": True, "make": adamw, "ema_decay": 0.7},
}
SGD = functools.partial(optim.sgd, lr=0.05)


def training(
    folder: Path,
    terms: str,
    *,
    shard: bool,
    epochs: int = EPOCHS,
    make: Callable[[Distiller], torch.optim.Optimizer] = SGD,
    norm: bool = False,
    labels: bool = True,
    vit: bool = False,
    val: bool = True,
    checkpoints: Checkpoints | None = None,
    loader: Any = None,
    **more: Any,
) -> dict[str, Any]:
    """Weights, counters and figures of a whole training, and how the teacher came out of it."""
    subject = distiller(terms, norm=norm, labels=labels, vit=vit)
    before = teacher_state(subject)
    result = fit(
        subject,
        loader if loader is not None else Ragged(labels=labels),
        val_batches(labels=labels) if val else None,
        epochs=epochs,
        optimizer=make,
        rate=optim.cosine_decay(EPOCHS, warmup=1),
        clip=2.0,
        log=RunLog(folder),
        checkpoints=checkpoints,
        shard=shard,
        cpu=True,
        **more,
    )
    assert not sharding.is_sharded(subject.student)
    assert not sharding.is_sharded(subject.term_modules)
    state = {**subject.student.state_dict(prefix="s."), **subject.term_modules.state_dict(prefix="t.")}
    return {
        "state": {**state, **result.student.state_dict(prefix="a.")},
        "counters": (result.counters.step, result.counters.images, result.counters.skipped),
        "figures": {"last": result.last, "best": result.best},
        "teacher": tiny.same_bytes(teacher_state(subject), before),
        "held": held(subject.teacher),
    }


def teacher_state(subject: Distiller) -> dict[str, Tensor]:
    if subject.teacher is None:
        return {}
    return {name: sharding.whole(value).clone() for name, value in subject.teacher.state_dict().items()}


def held(module: nn.Module | None) -> tuple[int, int]:
    """Numbers of a module's parameters that this process has, and all of them."""
    parameters = list(module.parameters()) if module is not None else []
    return sum(sharding.local(p).numel() for p in parameters), sum(p.numel() for p in parameters)


def everything(folder: Path, *, shard: bool) -> dict[str, Any]:
    return {name: training(folder / name, shard=shard, **case) for name, case in CASES.items()}


def own_loop() -> dict[str, Tensor]:
    """Three steps of somebody's own loop, without :func:`limbeck.fit`."""
    subject = distiller("several")
    model = shard_distiller(subject, CPU)
    optimizer = adamw(subject)
    loader = Ragged().shard(collectives.rank(), collectives.world_size())
    model.train()
    for _, batch in zip(range(3), loader, strict=False):
        optimizer.zero_grad()
        model(batch).loss.backward()
        optimizer.step()
    return {name: sharding.whole(parameter).clone() for name, parameter in subject.trainable_parameters().items()}


def most_at_once() -> tuple[int, int, int]:
    """Of a teacher of ten layers: numbers that this process has between two calls, and at most within one; and all."""
    teacher = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(10)))
    total = sum(p.numel() for p in teacher.parameters())
    sharding.shard_frozen(teacher, CPU)
    between = held(teacher)[0]
    most = 0

    def look(*_: object) -> None:
        nonlocal most
        most = max(most, held(teacher)[0])

    for layer in teacher:
        layer.register_forward_pre_hook(look)
    with torch.no_grad():
        teacher(torch.randn(2, 16))
    assert held(teacher)[0] == between
    return between, most, total


def scored() -> list[dict[str, float]]:
    """A sharded model on fewer batches than processes, on as many, and on more than that."""
    torch.manual_seed(0)
    model = tiny.Net(6).double()
    if collectives.world_size() > 1:
        sharding.shard_frozen(model, CPU)
    batches = val_batches()
    return [evaluate(model, Classification(), batches[:count], CPU) for count in (0, 1, 2, 3)]


def work(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
    os.environ |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size)
    found = {
        "cases": everything(folder, shard=True),
        "own loop": own_loop(),
        "most at once": most_at_once(),
        "scored": scored(),
    }
    torch.save(found, folder / f"rank{rank}.pt")
    collectives.barrier()
    dist.destroy_process_group()
