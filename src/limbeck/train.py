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
from accelerate import Accelerator  # pyright: ignore[reportMissingTypeStubs]
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, IterableDataset

from limbeck import collectives
from limbeck.accumulation import Accumulation
from limbeck.checkpoint import Checkpoints, Counters
from limbeck.distiller import Distiller, StepResult
from limbeck.errors import UserError
from limbeck.evaluation import validate
from limbeck.guard import Guard, Skip
from limbeck.loading import ShardedLoader, remaining, sharded
from limbeck.meter import Meter
from limbeck.optim import Rate, check_gradients, check_optimizer, check_scaled, set_rate, sgd
from limbeck.random_state import random_state, state_of_this, states_of_all
from limbeck.records import headline
from limbeck.runlog import RunLog
from limbeck.stopping import Stopped, Stopping


@runtime_checkable
class Probing(Protocol):
    """Looks at a training from time to time, and changes nothing of it, for instance `limbeck.diagnostics.Probe`.

    Every process calls it at the same steps; what it does with that is its own affair, but it may not wait for others.
    """

    def __call__(self, step: int, epoch: float) -> Any:
        """Look, if it is time: before the first step (0) and after each one, with the epochs done so far."""
        ...

    def run(self, step: int, epoch: float) -> Any:
        """Look in any case: after the last step."""
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
    optimizer: Optimizer | None = None,
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
    probe: Probing | None = None,
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
        optimizer: Over ``distiller.trainable_parameters()``; by default :func:`sgd`.
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
        probe: Looks at the training as it goes; the bytes of the student are the same with it and without.
        cpu: Stay on the CPU where there is a GPU.

    Raises:
        UserError: If a trainable parameter is not in the optimizer or gets no gradient, if SGD is fused in float16, if
            there is no batch, if the checkpoint is of another run, or if a loss, a gradient or a parameter is not
            finite (the message says at which step and in which part; the checkpoints are from before it).
        Stopped: By SIGTERM or SIGINT; a KeyboardInterrupt that knows the signal.

    Deviates from: the published DeiT code, which clips gradients that are still scaled (its ``main.py``, lines
    225-232).
    """
    if epochs < 1 or accumulate < 1:
        raise UserError(f"epochs is {epochs} and accumulate is {accumulate}; both must be at least 1")
    # Without a GPU it has to be told "cpu", or it does not see that torchrun started several processes.
    accelerator: Any = Accelerator(cpu=cpu or not torch.accelerator.is_available())  # Any: it is only partly typed
    device: torch.device = accelerator.device
    if accelerator.num_processes != collectives.world_size():
        raise UserError("torch.distributed was started without the environment that Accelerate reads; use torchrun")
    log = log if log is not None else RunLog()
    distiller.to(device)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    optimizer = optimizer if optimizer is not None else sgd(distiller, scaled=scaler.is_enabled())
    check_optimizer(distiller, optimizer)
    if scaler.is_enabled():
        check_scaled(optimizer)
    average = None
    if ema_decay is not None:
        blend: Any = get_ema_multi_avg_fn(ema_decay)  # pyright: ignore[reportUnknownVariableType]
        average = AveragedModel(distiller.student, multi_avg_fn=blend, use_buffers=True)
    evaluated = average.module if average is not None else distiller.student
    kept = {"student": distiller.student, "terms": distiller.term_modules} | ({"average": average} if average else {})
    counters, midway = _resume(checkpoints, kept, optimizer, scaler, device, log)

    def save(within: Mapping[str, Any]) -> None:
        if checkpoints is not None:
            trainer = {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(), **within}
            checkpoints.save(kept, trainer, counters, device)

    loader = sharded(train_loader, accelerator, device)
    if midway and isinstance(train_loader, DataLoader) and midway["processes"] != accelerator.num_processes:
        raise UserError(
            f"the checkpoint is of {midway['processes']} processes in mid-epoch, here are {accelerator.num_processes}; "
            "a DataLoader gives each of them batches of its own, so it takes as many to go on"
        )
    # Accelerate reads an iterable data set on the first process and sends it on: its collectives are not for a thread.
    is_sent = isinstance(train_loader, DataLoader) and isinstance(train_loader.dataset, IterableDataset)
    ahead = accelerator.num_processes == 1 or not is_sent
    model: nn.Module = accelerator.prepare_model(distiller)
    autocast = functools.partial(torch.autocast, device.type, dtype=precision, enabled=precision != torch.float32)
    no_sync = functools.partial(accelerator.no_sync, model)
    as_one = Accumulation(distiller, model, scaler, autocast=autocast, no_sync=no_sync)
    guard = Guard(distiller, kept, optimizer, on_bad_numbers, log, counters, device, autocast=autocast, scaler=scaler)

    last: dict[str, float] = {}
    stopping = Stopping(active=checkpoints is not None)
    with contextlib.ExitStack() as inside:
        inside.callback(log.pause)
        inside.enter_context(stopping)
        if probe is not None and counters.step == 0:
            probe(0, 0.0)
        since = time.perf_counter() - counters.seconds
        for epoch in range(counters.epoch, epochs):
            loader.set_epoch(epoch)
            model.train()
            meter = Meter(log, counters, epoch, device, guard, distiller.clock)
            log.epoch_begins(epoch + 1, epochs, math.ceil(len(loader) / accumulate))
            begun = midway["begun"] if midway else random_state(device)
            if midway:
                meter.go_on(midway["meter"])
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
                if len(batches) == 1:
                    with autocast():
                        result: StepResult = model(batches[0])
                    scaler.scale(result.loss).backward()  # pyright: ignore[reportUnknownMemberType]
                else:
                    result = as_one(batches)
                if counters.step == 0:
                    check_gradients(distiller)
                if taken := guard.allows(result, batches):
                    if clip is not None:
                        scaler.unscale_(optimizer)
                        nn.utils.clip_grad_norm_(distiller.trainable_parameters().values(), clip)
                    scaler.step(optimizer)
                    scaler.update()
                    if average is not None:
                        average.update_parameters(distiller.student)
                optimizer.zero_grad(set_to_none=True)
                counters.step += 1
                meter.add(result, optimizer, taken=taken)
                if probe is not None:
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
                    _stop(signum, counters, log)
            train = meter.finish()
            if probe is not None and epoch + 1 == epochs:
                probe.run(counters.step, float(epochs))
            guard.check_state()
            # A batch norm of the student's own has seen one process's images: all score, and keep, the first one's.
            collectives.copy_from_first(buffer for module in kept.values() for buffer in module.buffers())
            last = validate(distiller, evaluated, val_loader, device) if val_loader is not None else {}
            counters.epoch, counters.batches = epoch + 1, 0
            counters.seconds = time.perf_counter() - since
            is_best = _keep_best(counters, last)
            if accelerator.is_main_process:
                record = {"step": counters.step, "train": train, "val": last, "seconds": counters.seconds}
                log.epoch_ends(epoch + 1, epochs, record)
                if is_best and on_best is not None:
                    on_best(evaluated)
            save({})
            collectives.barrier()
            if on_epoch is not None:
                on_epoch(epoch + 1, last)
            if epoch + 1 < epochs and (signum := stopping.agreed(device)):
                _stop(signum, counters, log)
    if not last and val_loader is not None:  # resumed behind the last epoch
        last = validate(distiller, evaluated, val_loader, device)
    return FitResult(evaluated, last, counters.best, counters)


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


def _resume(
    checkpoints: Checkpoints | None,
    kept: Mapping[str, nn.Module],
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    device: torch.device,
    log: RunLog,
) -> tuple[Counters, dict[str, Any] | None]:
    """Where the run stands, and within an epoch what is needed to go on there."""
    if checkpoints is None:
        return Counters(), None
    state = checkpoints.load(kept, device)
    if checkpoints.skipped:
        log.note(f"skipped damaged checkpoints: {'; '.join(checkpoints.skipped)}")
    if state is None:
        log.rewind(0)  # a run that was killed in its first epoch begins again
        return Counters(), None
    trainer, counters = state
    try:
        optimizer.load_state_dict(trainer["optimizer"])
        scaler.load_state_dict(trainer["scaler"])
    except (ValueError, KeyError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"the checkpoint in {checkpoints.folder} is of another optimizer: {first}") from error
    log.rewind(counters.step)
    where = f"batch {counters.batches} of epoch {counters.epoch + 1}"
    where = where if counters.batches else f"the end of epoch {counters.epoch}"
    log.note(f"going on from {where}, step {counters.step}")
    if counters.batches == 0:
        return counters, None
    begun = trainer["begun"]
    return counters, {"begun": state_of_this(begun), "processes": len(begun), "meter": trainer["meter"]}


def _stop(signum: int, counters: Counters, log: RunLog) -> None:
    """End a training that has just been saved, on every process when the first one is done with it."""
    collectives.barrier()
    stopped = Stopped(signum)
    log.note(f"stopped by {stopped.reason} behind step {counters.step}; the checkpoint is written")
    raise stopped
