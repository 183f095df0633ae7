"""Sharded trainings that are stopped, meet bad numbers, or are refused, by each process of ``test_sharding_faults``."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import tiny
from limbeck import Distiller, LogitTerm, fit
from limbeck.distiller import shard_distiller
from limbeck.distributed import collectives, sharding
from limbeck.errors import Stopped, UserError
from limbeck.storage.checkpoint import Checkpoints
from limbeck.tasks import Classification
from limbeck.training import meter, optim
from limbeck.training.bad_batch import broken_parameters
from limbeck.training.evaluation import evaluate
from limbeck.training.fit import gradient_norm
from limbeck.training.guard import Skip
from processes_worker import Indexed, Looking, Ragged
from sharding_worker import CPU, adamw, distiller, training

CASE: dict[str, Any] = {"terms": "several", "norm": True, "ema_decay": 0.7, "make": adamw}
AT = 3  # steps of the first epoch that are taken before something happens


class Eventful(Ragged):
    """Does something in front of a batch of the first epoch, on the last process."""

    def __init__(self, event: Callable[[], None], *, everywhere: bool = False) -> None:
        super().__init__()
        self.event, self.everywhere = event, everywhere

    def shard(self, rank: int, world_size: int) -> "Eventful":
        super().shard(rank, world_size)
        return self

    def __iter__(self) -> Iterator[Indexed]:
        for step, batch in enumerate(super().__iter__()):
            if self.epoch == 0 and step == AT and (self.everywhere or self.rank == self.world_size - 1):
                self.event()
            yield batch


class Spoiled(Ragged):
    """One image of the last process is not a number, in one step of each epoch."""

    def shard(self, rank: int, world_size: int) -> "Spoiled":
        super().shard(rank, world_size)
        return self

    def __iter__(self) -> Iterator[Indexed]:
        for step, batch in enumerate(super().__iter__()):
            if step == AT and self.rank == self.world_size - 1:
                batch.images[-1:] = torch.nan
            yield batch


def kill() -> None:
    raise KeyboardInterrupt


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


def broken_off(folder: Path, event: Callable[[], None], *, everywhere: bool = False) -> dict[str, Any]:
    """A training that ends in its first epoch, and what goes on from its checkpoint."""
    kept = Checkpoints(folder / "checkpoint", every=2)
    error: type[BaseException] = Stopped if event is terminate else KeyboardInterrupt
    loader = Eventful(event, everywhere=everywhere)
    try:
        training(folder, **CASE, shard=True, checkpoints=kept, loader=loader)
    except error:
        pass
    else:
        raise AssertionError("it was not stopped")
    states = [path.name for path in kept.states()]
    again = training(folder, **CASE, shard=True, checkpoints=Checkpoints(folder / "checkpoint"))
    return {"states": states, "again": again}


def in_turn(folder: Path, kinds: tuple[bool, ...]) -> dict[str, Any]:
    """An epoch each, in shards or not, each of which goes on from the checkpoint of the one before."""
    found: dict[str, Any] = {}
    for epochs, shard in enumerate(kinds, start=1):
        kept = Checkpoints(folder / "checkpoint")
        found = training(folder, **CASE, shard=shard, epochs=epochs, checkpoints=kept)
    return found


def parts_of(spoil: str) -> dict[str, Any]:
    """Where a number on the last process's share is bad, all processes say the same, and leave the step out or stop."""
    subject = distiller("several")
    shard_distiller(subject, CPU)
    target = subject.trainable_parameters()["student.conv1.weight"]
    target.grad = torch.zeros_like(target)
    if collectives.rank() == collectives.world_size() - 1:
        sharding.local(target if spoil == "parameter" else target.grad).view(-1)[-1] = torch.nan
    return {
        "broken": broken_parameters(subject),
        "norm": float(gradient_norm([sharding.local(target.grad)], shard=True)),
    }


def left_out(folder: Path, *, shard: bool) -> dict[str, Any]:
    """A bad image in each epoch, whose step is left out."""
    return training(folder, **CASE, shard=shard, loader=Spoiled(), val=False, on_bad_numbers=Skip(limit=5, factor=0.5))


def stopped(folder: Path) -> str:
    try:
        training(folder, "several", shard=True, loader=Spoiled())
    except UserError as error:
        return str(error)
    return "not stopped"


class Scaled(nn.Module):
    """A network with a learned scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.scale = tiny.Net(4), nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.net(x)


def refusals() -> dict[str, str]:
    """What cannot be combined with shards, and what is said of it."""

    def plain() -> Distiller:
        return Distiller(tiny.Net(4), tiny.Net(6), Classification(), terms={"logit": LogitTerm()})

    def compiled() -> Distiller:
        made = plain()
        made.compile_parts(Indexed(*tiny.images(4), torch.arange(4)))
        return made

    given = plain()
    last = Distiller(tiny.Net(4).to(memory_format=torch.channels_last), None, Classification())
    attempts: dict[str, tuple[Distiller, dict[str, Any]]] = {
        "optimizer": (given, {"optimizer": optim.sgd(given)}),
        "float16": (plain(), {"precision": torch.float16}),
        "accumulate": (plain(), {"accumulate": 2}),
        "probe": (plain(), {"probe": Looking(lambda step, epoch: None)}),
        "compile": (compiled(), {}),
        "scalar": (Distiller(Scaled(), None, Classification()), {}),
        "channels_last": (last, {}),
    }
    found: dict[str, str] = {}
    for name, (subject, settings) in attempts.items():
        try:
            fit(subject, tiny.Loader(16, 8), epochs=1, shard=True, cpu=True, **settings)
            found[name] = "not refused"
        except UserError as error:
            found[name] = str(error)
    return found


class Reading(tiny.Net):
    """A network that computes with the weight of its classifier and does not call it."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv2(torch.relu(self.norm(self.conv1(x)))))
        return x.mean((2, 3)) @ self.fc.weight.T + self.fc.bias


def unfit() -> list[str]:
    """What is said of a teacher that cannot be cut up, in a step and where it is scored by itself."""
    said: list[str] = []
    for step in (True, False):
        teacher = Reading(60)  # so wide that the classifier is a part
        subject = Distiller(tiny.Net(4), teacher, Classification(), terms={"logit": LogitTerm()})
        sharding.LARGEST, was = 1.0, sharding.LARGEST
        sharding.SMALLEST, least = 0.0, sharding.SMALLEST
        try:
            if step:
                fit(subject, tiny.Loader(16, 8), epochs=1, shard=True, cpu=True)
            else:
                sharding.shard_frozen(teacher, CPU)
                evaluate(teacher, Classification(), [tiny.Batch(*tiny.images(4))], CPU)
            said.append("not refused")
        except UserError as error:
            said.append(str(error))
        finally:
            sharding.LARGEST, sharding.SMALLEST = was, least
    return said


def recorded(folder: Path) -> list[str]:
    """The collectives of this process in a sharded training with everything, in their order."""
    seen: list[str] = []
    shares = ("all_gather_single", "reduce_scatter_single", "all_gather_into_tensor", "reduce_scatter_tensor")
    names = ["all_reduce", "all_gather", "broadcast", "barrier", *(name for name in shares if hasattr(dist, name))]
    originals = {name: getattr(dist, name) for name in names}
    whole = sharding.whole

    def recording(name: str) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            tensors = [x for x in (*args, *more.values()) if isinstance(x, Tensor)]
            seen.append(f"{name} {[(tuple(t.shape), str(t.dtype)) for t in tensors]}")
            return originals[name](*args, **more)

        return call

    def recorded_whole(x: Tensor) -> Tensor:
        if sharding.is_sharded(x):
            seen.append(f"whole {tuple(x.shape)}")
        return whole(x)

    try:
        sharding.whole = recorded_whole
        for name in names:
            setattr(dist, name, recording(name))
        for epochs in (1, 2):  # the second goes on from the checkpoint of the first
            more = {"checkpoints": Checkpoints(folder / "checkpoint", every=2), "loader": Spoiled()}
            skip = Skip(limit=5)
            training(folder, **CASE, shard=True, epochs=epochs, on_bad_numbers=skip, on_best=lambda _: None, **more)
        training(folder / "free", "several", shard=True, labels=False)
    finally:
        sharding.whole = whole
        for name, original in originals.items():
            setattr(dist, name, original)
    return seen


def work(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
    os.environ |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size)
    meter.LOG_EVERY = 2
    found = {
        "unbroken": training(folder / "unbroken", **CASE, shard=True, checkpoints=Checkpoints(folder / "unbroken")),
        "killed": broken_off(folder / "killed", kill, everywhere=True),
        "stopped by a signal": broken_off(folder / "signal", terminate),
        "in turn": {
            "in whole, in shares": in_turn(folder / "whole-shares", (False, True)),
            "in shares, in whole": in_turn(folder / "shares-whole", (True, False)),
        },
        "from one": training(
            folder.parent / "one-shares",
            **CASE,
            shard=True,
            checkpoints=Checkpoints(folder.parent / "one-shares" / "checkpoint"),
        ),
        "to one": training(
            folder / "shares-one",
            **CASE,
            shard=True,
            epochs=1,
            checkpoints=Checkpoints(folder / "shares-one" / "checkpoint"),
        ),
        "parts": {spoil: parts_of(spoil) for spoil in ("parameter", "gradient")},
        "left out": left_out(folder / "left out", shard=True),
        "stopped": stopped(folder / "stopped"),
        "refusals": refusals(),
        "unfit": unfit(),
        "recorded": recorded(folder / "recorded"),
    }
    torch.save(found, folder / f"rank{rank}.pt")
    collectives.barrier()
    dist.destroy_process_group()
