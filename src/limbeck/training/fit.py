"""The one visible training loop."""

import contextlib
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate import PartialState  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, IterableDataset

from limbeck.distiller import Distiller, StepResult
from limbeck.distributed import collectives, sharding
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
from limbeck.training.modules import MakeOptimizer, TrainedModules, check_shards, in_shares, in_whole
from limbeck.training.optim import Rate, check_gradients, check_optimizer, check_scaled, sgd
from limbeck.training.precision import out_of_memory
from limbeck.training.resuming import Midway, check_processes, resume, stop
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
        rate: Factor on the learning rate, for instance :func:`cosine_decay`; constant by default.
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
    modules = (in_shares if shard else in_whole)(distiller, device, ema_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    optimizer = optimizer if optimizer is not None else functools.partial(sgd, scaled=scaler.is_enabled())
    optimizer = optimizer if isinstance(optimizer, Optimizer) else optimizer(modules.distiller)
    check_optimizer(modules.distiller, optimizer)
    if scaler.is_enabled():
        check_scaled(optimizer)
    loader = sharded(train_loader, device)
    # Accelerate reads an iterable data set on the first process and sends it on: its collectives are not for a thread.
    is_sent = isinstance(train_loader, DataLoader) and isinstance(train_loader.dataset, IterableDataset)
    autocast = functools.partial(torch.autocast, device.type, dtype=precision, enabled=precision != torch.float32)
    with contextlib.ExitStack() as inside:
        # From here on: a signal while the checkpoint is read waits for the first step.
        stopping = inside.enter_context(Stopping(active=checkpoints is not None))
        counters, midway = resume(checkpoints, modules.checkpointed, optimizer, scaler, device, log)
        check_processes(midway, train_loader, collectives.world_size())
        training = _Training(
            modules=modules,
            parameters=list(modules.distiller.trainable_parameters().values()),
            optimizer=optimizer,
            rate=rate,
            clip=clip,
            scaler=scaler,
            autocast=autocast,
            accumulate=accumulate,
            accumulation=Accumulation(
                modules.distiller, modules.model, scaler, autocast=autocast, no_sync=modules.no_sync
            ),
            shard=modules.original is not modules.distiller,
            loader=loader,
            ahead=collectives.world_size() == 1 or not is_sent,
            val_loader=val_loader,
            device=device,
            epochs=epochs,
            counters=counters,
            guard=Guard(
                modules.distiller,
                modules.checkpointed,
                optimizer,
                on_bad_numbers,
                log,
                counters,
                autocast=autocast,
                scaler=scaler,
            ),
            log=log,
            checkpoints=checkpoints,
            stopping=stopping,
            probe=probe,
        )
        inside.callback(log.pause)
        if counters.step == 0:
            training.look(0.0)
        training.since = time.perf_counter() - counters.seconds
        for epoch in range(counters.epoch, epochs):
            train = training.run_epoch(epoch, midway)
            midway = None
            training.end_epoch(epoch, train, on_best)
            if on_epoch is not None:
                on_epoch(epoch + 1, training.last)
            if epoch + 1 < epochs and (signum := stopping.agreed(device)):
                stop(signum, counters, log)
    if not training.last:  # resumed behind the last epoch
        training.validate()
    if on_end is not None and collectives.rank() == 0:
        on_end(modules.evaluated)
    if probe is not None:
        with log.guarded("the probe"):
            probe.run(counters.step, float(epochs))
    return FitResult(modules.evaluated, training.last, counters.best, counters)


@dataclass(kw_only=True)
class _Training:
    """What the steps and epochs of one training share."""

    modules: TrainedModules
    parameters: list[nn.Parameter]
    optimizer: Optimizer
    rate: Rate | None
    clip: float | None
    scaler: torch.amp.GradScaler
    autocast: Callable[[], torch.autocast]
    accumulate: int
    accumulation: Accumulation
    shard: bool
    loader: Any  # of this process's share
    ahead: bool
    val_loader: Iterable[Any] | None
    device: torch.device
    epochs: int
    counters: Counters
    guard: Guard
    log: RunLog
    checkpoints: Checkpoints | None
    stopping: Stopping
    probe: Probing | None
    last: dict[str, float] = field(default_factory=dict[str, float])
    since: float = 0.0

    def run_epoch(self, epoch: int, midway: Midway | None) -> dict[str, float]:
        """Make the steps of an epoch, or those that are left of it; the means of its losses."""
        counters, distiller, device, each = self.counters, self.modules.distiller, self.device, self.accumulate
        self.loader.set_epoch(epoch)
        self.modules.model.train()
        meter = Meter(self.log, counters, epoch, device, self.guard, distiller.clock)
        self.log.epoch_begins(epoch + 1, self.epochs, math.ceil(len(self.loader) / each))
        begun = midway.begun if midway else random_state(device)
        if midway:
            meter.go_on(midway.meter)
        first = math.ceil(counters.batches / each)
        # Without a name of its own for the iterator, an error or a stop in the loop ends the thread behind it.
        for index, batches in enumerate(
            _grouped(remaining(self.loader, counters.batches, begun, device, ahead=self.ahead), each), first
        ):
            done = epoch + index * each / len(self.loader)
            distiller.progress = done / self.epochs
            set_rate(self.optimizer, self.guard.factor * (self.rate(done) if self.rate is not None else 1.0))
            result, taken = self.step(batches)
            counters.step += 1
            meter.add(result, self.optimizer, taken=taken)
            self.look(epoch + min(1.0, (index + 1) * each / len(self.loader)))
            counters.batches += len(batches)
            if not meter.is_recorded and collectives.world_size() > 1:
                continue  # where the processes talk anyway is often enough
            signum = self.stopping.agreed(device)
            if signum or (self.checkpoints is not None and self.checkpoints.is_due(counters.step)):
                self.guard.check_state()
                counters.seconds = time.perf_counter() - self.since
                self.save({"begun": states_of_all(begun, device), "meter": meter.state()})
            if signum:
                stop(signum, counters, self.log)
        return meter.finish()

    def step(self, batches: list[Any]) -> tuple[StepResult, bool]:
        """Make one step, and say whether the optimizer took it: forward, backward, look, clip, step."""
        distiller, scaler = self.modules.distiller, self.scaler
        if self.guard.buffers is not None:
            self.guard.buffers.keep()
        try:
            if len(batches) == 1:
                with self.autocast():
                    result: StepResult = self.modules.model(batches[0])
                scaler.scale(result.loss).backward()  # pyright: ignore[reportUnknownMemberType]
            else:
                result = self.accumulation(batches)
            if self.counters.step == 0:
                again = functools.partial(_loss, distiller, batches[0], self.autocast)
                check_gradients(distiller, again if collectives.world_size() == 1 else None)
            gradients = [sharding.local(g) if self.shard else g for p in self.parameters if (g := p.grad) is not None]
            # In float16 a gradient that overflows is no fault, and the scaler's affair.
            norm = result.loss.new_zeros(()) if scaler.is_enabled() else gradient_norm(gradients, shard=self.shard)
            is_fine = False
            if self.guard.reads_at_once:  # one number tells of all
                number = result.loss.detach() + norm
                if result.unsound is not None:
                    number = torch.where(result.unsound.any(), math.nan, number)
                is_fine = math.isfinite(float(number))
            taken = (is_fine and collectives.world_size() == 1) or self.guard.allows(result, batches, norm, is_fine)
            if taken:
                if self.clip is not None:
                    if scaler.is_enabled():
                        scaler.unscale_(self.optimizer)
                        norm = gradient_norm(gradients, shard=self.shard)
                    torch._foreach_mul_(gradients, (self.clip / (norm + 1e-6)).clamp(max=1))  # pyright: ignore
                scaler.step(self.optimizer)
                scaler.update()
                if self.modules.average is not None:
                    self.modules.average.update_parameters(distiller.student)
        except RuntimeError as error:
            if (explained := out_of_memory(error, distiller, batches[0], self.counters.step + 1)) is None:
                raise
            raise explained from error
        self.optimizer.zero_grad(set_to_none=True)
        return result, taken

    def end_epoch(self, epoch: int, train: dict[str, float], on_best: Callable[[nn.Module], None] | None) -> None:
        """Score the student, write the record of the epoch, and keep a checkpoint."""
        counters, modules = self.counters, self.modules
        self.guard.check_state()
        self.validate()
        counters.epoch, counters.batches = epoch + 1, 0
        counters.seconds = time.perf_counter() - self.since
        is_best = _keep_best(counters, self.last)
        if collectives.rank() == 0:
            looked: Mapping[str, float] = getattr(self.probe, "figures", {})
            val, seconds = {**self.last, **looked}, counters.seconds
            record = {"step": counters.step, "train": train, "val": val, "seconds": seconds}
            self.log.epoch_ends(epoch + 1, self.epochs, record)
            if is_best and on_best is not None:
                on_best(modules.evaluated)
        self.save({})
        collectives.barrier()

    def validate(self) -> None:
        """Score what is returned, the same on every process."""
        self.modules.synchronize()
        if self.val_loader is not None:
            self.last = validate(self.modules.original, self.modules.evaluated, self.val_loader, self.device)

    def look(self, epoch: float) -> None:
        """Let the probe look; what it raises is noted."""
        if self.probe is not None:
            with self.log.guarded("the probe"):
                self.probe(self.counters.step, epoch)

    def save(self, within: Mapping[str, Any]) -> None:
        """Keep a checkpoint, where any are kept."""
        if self.checkpoints is not None:
            trainer = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(), **within}
            self.checkpoints.save(self.modules.checkpointed, trainer, self.counters, self.device)


def gradient_norm(gradients: Sequence[Tensor], *, shard: bool) -> Tensor:
    """Euclidean norm of all of them together.

    Args:
        gradients: Those of this process, or its shares of them.
        shard: Whether they are shares: then those of all processes count.
    """
    # What torch's get_total_norm computes, in half its time: that counts where tensors are small.
    norms: tuple[Tensor, ...] = torch._foreach_norm(gradients)  # pyright: ignore
    own: Tensor = torch.linalg.vector_norm(torch.stack(norms))  # pyright: ignore
    if not shard:
        return own  # pyright: ignore
    return collectives.sum_across(own.double().square()).sqrt().to(own.dtype)  # pyright: ignore


def set_rate(optimizer: Optimizer, factor: float) -> None:
    """Set each group's learning rate to its first one times ``factor``."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
        group["lr"] = group["initial_lr"] * factor


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
            f"fit: cpu is {cpu}, and the processes were started to talk through {here.type}; start them again"
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
