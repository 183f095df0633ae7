"""A signal ends a training behind a step and a checkpoint, and it goes on in mid-epoch to the same bytes."""

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import probed
import resume_worker
import tiny
from limbeck import fit
from limbeck.errors import Stopped
from limbeck.logs.runlog import RunLog
from limbeck.storage.checkpoint import Checkpoints
from limbeck.training import meter, optim
from limbeck.training.loading import Seekable
from limbeck.training.stopping import Stopping
from training.test_resume import assert_same, flat, timeless

pytestmark = pytest.mark.usefixtures("interruptible")

CPU = torch.device("cpu")
EPOCHS, BATCHES = 2, 5


class Signalling(tiny.Loader):
    """Sends its process a signal while it makes a batch; draws from the global generator as augmentations may."""

    def __init__(self, at: int | None, signum: int) -> None:
        super().__init__(8 * BATCHES, 8)
        self.at, self.signum = at, signum

    def __iter__(self) -> Iterator[tiny.Batch]:
        for batch in super().__iter__():
            self.at = self.at - 1 if self.at is not None else None
            if self.at == 0:
                signal.raise_signal(self.signum)
            yield tiny.Batch(batch.images + 0.01 * torch.rand(1), batch.target)


class Sought(Signalling):
    """Its batches are functions of epoch and step, and beginning draws a number, as starting workers does."""

    def iterate(self, start: int = 0) -> Iterator[tiny.Batch]:
        torch.rand(1)
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(self.epoch))
        for chosen in order.split(self.batch_size)[start:]:
            self.at = self.at - 1 if self.at is not None else None
            if self.at == 0:
                signal.raise_signal(self.signum)
            yield tiny.Batch(self.x[chosen], self.target[chosen])

    def __iter__(self) -> Iterator[tiny.Batch]:
        return self.iterate()


class Images(TensorDataset):
    """Sends a signal when so many images have been read."""

    def __init__(self, at: int | None, signum: int) -> None:
        super().__init__(*tiny.images(8 * BATCHES))
        self.left = 8 * at if at is not None else 0
        self.signum = signum

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(self.signum)
        return super().__getitem__(index)


def loader(kind: str, at: int | None, signum: int) -> Any:
    if kind == "shuffled":  # its order comes from the global generator
        return DataLoader(Images(at, signum), batch_size=8, shuffle=True)
    return (Sought if kind == "sought" else Signalling)(at, signum)


def train(
    folder: Path, kind: str = "drawn", *, at: int | None = None, signum: int = signal.SIGTERM, accumulate: int = 1
) -> resume_worker.Outcome:
    """Batch norm, dropout, moving average, schedule and clipping; the signal comes with a batch."""
    distiller = tiny.distiller(norm=True, dropout=0.3)
    optimizer = optim.adamw(distiller, lr=0.01)
    result = fit(
        distiller,
        loader(kind, at, signum),
        list(tiny.Loader(16, 8, seed=1)),
        epochs=EPOCHS,
        optimizer=optimizer,
        rate=optim.cosine_decay(EPOCHS, warmup=1),
        clip=1.0,
        accumulate=accumulate,
        ema_decay=0.8,
        log=RunLog(folder),
        checkpoints=Checkpoints(folder / "checkpoint"),
        cpu=True,
    )
    terms, counters = distiller.term_modules.state_dict(), result.counters
    figures = (result.last, result.best, counters.step, counters.images, counters.epoch, counters.batches)
    return resume_worker.Outcome(
        distiller.student.state_dict(), result.student.state_dict(), terms, optimizer.state_dict(), figures
    )


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "LOG_EVERY", 2)


@pytest.mark.parametrize(("kind", "accumulate"), [("drawn", 1), ("drawn", 2), ("sought", 2), ("shuffled", 1)])
def test_stopped_at_any_batch_it_ends_with_the_bytes_and_records_of_an_unbroken_run(
    tmp_path: Path, kind: str, accumulate: int
) -> None:
    unbroken = train(tmp_path / "unbroken", kind, accumulate=accumulate)
    records = timeless(tmp_path / "unbroken")
    for at in range(1, EPOCHS * BATCHES + 1):
        folder = tmp_path / str(at)
        with pytest.raises(Stopped):
            train(folder, kind, at=at, accumulate=accumulate)
        torch.rand(7)  # a new process does not go on where this one's generators stand
        random.random()
        assert_same(train(folder, kind, accumulate=accumulate), unbroken)
        assert timeless(folder) == records, at


def test_stopped_again_and_again(tmp_path: Path) -> None:
    """At each step: what is replayed counts, too."""
    unbroken = train(tmp_path / "unbroken")
    stops = 0
    while True:
        torch.rand(stops)
        try:
            found = train(tmp_path / "stopped", at=2)
        except Stopped:
            stops += 1
            continue
        break
    assert stops >= EPOCHS * BATCHES // 2
    assert_same(found, unbroken)
    assert timeless(tmp_path / "stopped") == timeless(tmp_path / "unbroken")


@pytest.mark.parametrize(("signum", "reason"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "SIGINT")])
def test_the_signal_is_named_and_the_handlers_are_what_they_were(
    tmp_path: Path, signum: signal.Signals, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(Stopped) as raised:
        train(tmp_path, at=7, signum=signum)
    assert raised.value.signum == signum
    assert f"stopped by {reason} after step 7; the checkpoint is written" in capfd.readouterr().err
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before
    train(tmp_path)
    assert "continuing from batch 2 of epoch 2, step 7" in capfd.readouterr().err


def test_a_signal_while_the_checkpoint_is_read_waits_for_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """By default SIGTERM would end the process there without a word."""
    unbroken = train(tmp_path / "unbroken")
    with pytest.raises(Stopped):
        train(tmp_path / "stopped", at=7)
    load = Checkpoints.load

    def signalled(*args: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return load(*args)

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "load", signalled)
        with pytest.raises(Stopped):
            train(tmp_path / "stopped")
    assert "stopped by SIGTERM after step 8; the checkpoint is written" in capfd.readouterr().err
    assert_same(train(tmp_path / "stopped"), unbroken)


def test_banks_and_running_norms_go_on_in_mid_epoch(tmp_path: Path) -> None:
    """A probe looks on, and its records are those of an unbroken run."""
    unbroken = probed.train(every=2, folder=tmp_path / "unbroken", loader=Held(None))
    with pytest.raises(Stopped):
        probed.train(every=2, folder=tmp_path / "stopped", loader=Held(3))
    torch.rand(3)
    found = probed.train(every=2, folder=tmp_path / "stopped", loader=Held(None))
    assert tiny.same_bytes(found.state, unbroken.state)
    of_probe = [
        [{k: v for k, v in r.items() if k != "seconds"} for r in tiny.records(tmp_path / name) if r["kind"] == "probe"]
        for name in ("unbroken", "stopped")
    ]
    left, right = flat(of_probe[0]), flat(of_probe[1])
    different = {name for name in left | right if left.get(name) != right.get(name)}
    assert different == set()


class Held(probed.Loader):
    """The loader of the probed training, with a signal."""

    def __init__(self, at: int | None) -> None:
        super().__init__()
        self.at = at

    def __iter__(self) -> Iterator[Any]:
        for count, batch in enumerate(super().__iter__(), 1):
            if count == self.at:
                signal.raise_signal(signal.SIGTERM)
            yield batch


def test_without_checkpoints_signals_do_what_they_did() -> None:
    distiller = tiny.distiller()
    with pytest.raises(KeyboardInterrupt) as raised:
        fit(distiller, Signalling(2, signal.SIGINT), epochs=1, cpu=True)
    assert not isinstance(raised.value, Stopped)


def test_pressed_again_later_it_is_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Stopping() as stopping:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # a launcher passes on what the terminal sent, too
        signal.raise_signal(signal.SIGTERM)
        assert stopping.agreed(CPU) == signal.SIGINT
        now[0] += 3.0
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with Stopping(active=False) as stopping, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert stopping.agreed(CPU) == 0


def test_a_forked_worker_ends_by_sigterm_and_not_by_ctrl_c() -> None:
    with Stopping():
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143


def test_the_loaders_of_limbeck_are_sought() -> None:
    from limbeck.cache import CachedLoader
    from limbeck.data import Loader

    assert issubclass(Loader, Seekable)
    assert issubclass(CachedLoader, Seekable)
    assert not isinstance(Signalling(None, 0), Seekable)
