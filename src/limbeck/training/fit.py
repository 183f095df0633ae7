"""The one visible training loop."""

import contextlib
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate import PartialState  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, IterableDataset

from limbeck.distiller import Distiller, StepResult
from limbeck.distributed import collectives
from limbeck.errors import UserError
from limbeck.logs.records import headline
from limbeck.logs.runlog import RunLog
from limbeck.storage.checkpoint import Checkpoints, Counters
from limbeck.storage.random_state import random_state, states_of_all
from limbeck.training.accumulation import Accumulation
from limbeck.training.evaluation import validate
from limbeck.training.guard import Guard, Skip
from limbeck.training.loading import ShardedLoader, remaining, sharded
from limbeck.training.meter import Meter
from limbeck.training.modules import MakeOptimizer, check_shards, in_shares, in_whole
from limbeck.training.optim import Rate, check_gradients, check_optimizer, check_scaled, clip_gradients, set_rate, sgd
from limbeck.training.precision import memory_explained
from limbeck.training.resuming import check_processes, resume, stop
from limbeck.training.stopping import Stopping


@runtime_checkable
class Probing(Protocol):
    """Looks at a training from time to time, and changes nothing of it, for instance `limbeck.diagnostics.Probe`.

    Every process calls it at the same steps; what it does with that is its own affair, but it may not wait for others.
    Numbers in a mapping ``figures``, if it has one, stand in the record of each epoch beside the validation figures.
    """

    def __call__(self, step: int, epoch: float) -> Any:
        """Look, if it is time: before the first step (0) and after each one, with the epochs done so far."""
        ...

    def run(self, step: int, epoch: float) -> Any:
        """Look in any case: when the training is done."""
        ...


@dataclass(frozen=True)
class FitResult:
    """What training gave.

    Attributes:
        student: The trained student; its moving average where one was asked for.
        last: Validation figures of the last epoch.
        best: Validation figures of the best epoch, and ``"epoch"``, counted from 1.
        counters: Steps, seconds and images.
    """

    student: nn.Module
    last: dict[str, float]
    best: dict[str, float]
    counters: Counters


def fit(
    distiller: Distiller,
    train_loader: DataLoader[Any] | ShardedLoader,
    val_loader: Iterable[Any] | None = None,
    *,
    epochs: int,
    optimizer: Optimizer | MakeOptimizer | None = None,
    rate: Rate | None = None,
    precision: torch.dtype = torch.float32,
    clip: float | None = None,
    accumulate: int = 1,
    ema_decay: float | None = None,
    on_bad_numbers: Skip | None = None,
    log: RunLog | None = None,
    checkpoints: Checkpoints | None = None,
    on_best: Callable[[nn.Module], None] | None = None,
    on_epoch: Callable[[int, Mapping[str, float]], None] | None = None,
    on_end: Callable[[nn.Module], None] | None = None,
    probe: Probing | None = None,
    shard: bool = False,
    cpu: bool = False,
) -> FitResult:
    """Train a distiller's student and terms.

    Runs on one process or, started by ``torchrun`` or ``accelerate launch``, on many. Where ``checkpoints`` hold a
    state, training goes on from it, and ends (on the CPU) with the bytes that an unbroken run has.

    Args:
        distiller: Student, teacher, task and terms.
        train_loader: A ``DataLoader``, which Accelerate shards (each process gets whole batches of its own), or a
            :class:`ShardedLoader` (the processes divide each batch, so their number changes nothing).
        val_loader: Batches that can be iterated again and again; every process evaluates its share of them.
        epochs: Passes over ``train_loader``.
        optimizer: Over ``distiller.trainable_parameters()``, or a function that makes one for the distiller that it is
            given; by default :func:`sgd`.
        rate: Factor on the learning rate, for instance :func:`cosine`; constant by default.
        precision: ``torch.float32``, or ``bfloat16`` or ``float16`` for autocast. Evaluation is always in float32.
        clip: Largest gradient norm over all trainable parameters, applied after unscaling.
        accumulate: Batches that count as one: the loss and the gradient of terms are those of the whole (the student's
            own batch norm sees one batch at a time); costs one more forward pass of the student and memory for the
            kept features. The last ones of an epoch may be fewer, and are then a smaller whole.
        ema_decay: Decay of a moving average of the student, which is then what is evaluated and returned.
        on_bad_numbers: Leave out steps whose loss or gradient is not finite; by default the first one ends the
            training. On a GPU this waits for the device in each step, which by default happens at records only.
        log: Receives the records; by default nothing is kept.
        checkpoints: Keeps a state at the end of each epoch, and where it is asked to in between; by default none is
            kept. With it SIGTERM and SIGINT end the training behind a step and a checkpoint, from which it goes on in
            mid-epoch (several processes: behind the step that the log records next). What the data set of a
            ``DataLoader`` without workers draws from the global random numbers is drawn anew then; its order is not.
        on_best: Called with the student after each epoch that is the best so far.
        on_epoch: Called on every process with the number of epochs done and the validation figures, behind the epoch's
            checkpoint; what it raises ends the training there, as early stopping needs.
        on_end: Called with the student when its training is done and kept, before the probe's last look.
        probe: Looks at the training as it goes; the bytes of the student are the same with it and without. An exception
            that it raises becomes a note.
        shard: Of several processes each holds a share of every parameter, gradient and moment of the optimizer (FSDP2),
            and of the teacher, whose parts are put together one at a time: no device ever has all of it. The optimizer
            is then given as a function, for the parameters become others. Student and terms that were given have the
            values of the training at the end of each epoch; checkpoints are those of a training without it, and either
            goes on with the other's. Not with float16, ``accumulate``, ``probe``, or a compiled distiller.
        cpu: Stay on the CPU where there is a GPU.

    Raises:
        UserError: If a trainable parameter is not in the optimizer or gets no gradient, if SGD is fused in float16, if
            there is no batch, if the checkpoint is of another run, or if a loss, a gradient or a parameter is not
            finite (the message says at which step and in which part; the checkpoints are from before it); with
            ``shard``, if it cannot be.
        Stopped: By SIGTERM or SIGINT; a KeyboardInterrupt that knows the signal.

    Deviates from: the published DeiT code, which clips gradients that are still scaled (its ``main.py``, lines
    225-232).
    """
    if epochs < 1 or accumulate < 1:
        raise UserError(f"epochs is {epochs} and accumulate is {accumulate}; both must be at least 1")
    device = _own_device(cpu=cpu)
    if shard:
        check_shards(optimizer=optimizer, precision=precision, accumulate=accumulate, probe=probe)
    log = log if log is not None else RunLog()
    trained = (in_shares if shard else in_whole)(distiller, device, ema_decay)
    distiller, model, average, kept = trained.distiller, trained.model, trained.average, trained.kept
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    optimizer = optimizer if optimizer is not None else functools.partial(sgd, scaled=scaler.is_enabled())
    optimizer = optimizer if isinstance(optimizer, Optimizer) else optimizer(distiller)
    check_optimizer(distiller, optimizer)
    if scaler.is_enabled():
        check_scaled(optimizer)

    def save(within: Mapping[str, Any]) -> None:
        if checkpoints is not None:
            trainer = {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(), **within}
            checkpoints.save(kept, trainer, counters, device)

    loader = sharded(train_loader, device)
    # Accelerate reads an iterable data set on the first process and sends it on: its collectives are not for a thread.
    is_sent = isinstance(train_loader, DataLoader) and isinstance(train_loader.dataset, IterableDataset)
    ahead = collectives.world_size() == 1 or not is_sent
    autocast = functools.partial(torch.autocast, device.type, dtype=precision, enabled=precision != torch.float32)
    as_one = Accumulation(distiller, model, scaler, autocast=autocast, no_sync=trained.no_sync)

    last: dict[str, float] = {}
    stopping = Stopping(active=checkpoints is not None)
    with contextlib.ExitStack() as inside:
        inside.enter_context(stopping)  # from here on: a signal while the checkpoint is read waits for the first step
        counters, midway = resume(checkpoints, kept, optimizer, scaler, device, log)
        check_processes(midway, train_loader, collectives.world_size())
        guard = Guard(
            distiller, kept, optimizer, on_bad_numbers, log, counters, device, autocast=autocast, scaler=scaler
        )
        inside.callback(log.pause)
        if probe is not None and counters.step == 0:
            with log.guarded("the probe"):
                probe(0, 0.0)
        since = time.perf_counter() - counters.seconds
        for epoch in range(counters.epoch, epochs):
            loader.set_epoch(epoch)
            model.train()
            meter = Meter(log, counters, epoch, device, guard, distiller.clock)
            log.epoch_begins(epoch + 1, epochs, math.ceil(len(loader) / accumulate))
            begun = midway.begun if midway else random_state(device)
            if midway:
                meter.go_on(midway.meter)
            midway = None
            first = math.ceil(counters.batches / accumulate)
            # Without a name of its own for the iterator, an error or a stop in the loop ends the thread behind it.
            for index, batches in enumerate(
                _grouped(remaining(loader, counters.batches, begun, device, ahead=ahead), accumulate), first
            ):
                done = epoch + index * accumulate / len(loader)
                distiller.progress = done / epochs
                set_rate(optimizer, guard.factor * (rate(done) if rate is not None else 1.0))
                guard.begin()
                with memory_explained(distiller, batches[0], counters.step + 1):
                    if len(batches) == 1:
                        with autocast():
                            result: StepResult = model(batches[0])
                        scaler.scale(result.loss).backward()  # pyright: ignore[reportUnknownMemberType]
                    else:
                        result = as_one(batches)
                if counters.step == 0:
                    again = functools.partial(_loss, distiller, batches[0], autocast)
                    check_gradients(distiller, again if collectives.world_size() == 1 else None)
                if taken := guard.allows(result, batches):
                    if clip is not None:
                        scaler.unscale_(optimizer)
                        clip_gradients(distiller, clip)
                    with memory_explained(distiller, batches[0], counters.step + 1):  # the first makes its moments
                        scaler.step(optimizer)
                    scaler.update()
                    if average is not None:
                        average.update_parameters(distiller.student)
                optimizer.zero_grad(set_to_none=True)
                counters.step += 1
                meter.add(result, optimizer, taken=taken)
                if probe is not None:
                    with log.guarded("the probe"):
                        probe(counters.step, epoch + min(1.0, (index + 1) * accumulate / len(loader)))
                counters.batches += len(batches)
                if not meter.is_recorded and collectives.world_size() > 1:
                    continue  # where the processes talk anyway is often enough
                signum = stopping.agreed(device)
                if signum or (checkpoints is not None and checkpoints.is_due(counters.step)):
                    guard.check_state()
                    counters.seconds = time.perf_counter() - since
                    save({"begun": states_of_all(begun, device), "meter": meter.state()})
                if signum:
                    stop(signum, counters, log)
            train = meter.finish()
            guard.check_state()
            trained.settle()
            last = validate(trained.given, trained.evaluated, val_loader, device) if val_loader is not None else {}
            counters.epoch, counters.batches = epoch + 1, 0
            counters.seconds = time.perf_counter() - since
            is_best = _keep_best(counters, last)
            if collectives.rank() == 0:
                looked: Mapping[str, float] = getattr(probe, "figures", {})
                record = {"step": counters.step, "train": train, "val": {**last, **looked}, "seconds": counters.seconds}
                log.epoch_ends(epoch + 1, epochs, record)
                if is_best and on_best is not None:
                    on_best(trained.evaluated)
            save({})
            collectives.barrier()
            if on_epoch is not None:
                on_epoch(epoch + 1, last)
            if epoch + 1 < epochs and (signum := stopping.agreed(device)):
                stop(signum, counters, log)
    if not last:  # resumed behind the last epoch
        trained.settle()
        last = validate(trained.given, trained.evaluated, val_loader, device) if val_loader is not None else {}
    if on_end is not None and collectives.rank() == 0:
        on_end(trained.evaluated)
    if probe is not None:
        with log.guarded("the probe"):
            probe.run(counters.step, float(epochs))
    return FitResult(trained.evaluated, last, counters.best, counters)


def _loss(distiller: Distiller, batch: Any, autocast: Callable[[], Any]) -> Tensor:
    with autocast():
        result: StepResult = distiller(batch)
        return result.loss


def _own_device(*, cpu: bool) -> torch.device:
    """The device of this process, of which the launcher may have started several.

    Of what a launcher leaves in the environment only the processes are taken: number format and compiler are those of
    the arguments, whatever ``accelerate launch`` was told.

    Raises:
        UserError: If the processes cannot talk through the device, or not at all.
    """
    cpu = cpu or not torch.accelerator.is_available()
    state: Any = PartialState(cpu=cpu)  # without a GPU it does not see several processes unless it is told
    if state.num_processes != collectives.world_size():
        raise UserError("torch.distributed was started without the environment that Accelerate reads; use torchrun")
    here = torch.device(state.device or "cpu")
    if (here.type == "cpu") == cpu:
        return here
    if collectives.world_size() > 1:
        raise UserError(
            f"fit: cpu is {cpu}, and the processes were started to talk through {here.type}; start them anew"
        )
    return torch.device("cpu") if cpu else state.default_device


def _grouped(loader: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """The batches in groups; the last one may be smaller."""
    batches = iter(loader)
    while group := list(itertools.islice(batches, size)):
        yield group


def _keep_best(counters: Counters, figures: Mapping[str, float]) -> bool:
    """Whether these figures are the best so far: the highest top-1 or average precision, or else the lowest loss."""
    name, sign = headline(figures)
    if name not in figures:
        return False
    better = sign * figures[name] > sign * counters.best.get(name, -sign * math.inf)
    if better:
        counters.best = {"epoch": counters.epoch, **figures}
    return better
