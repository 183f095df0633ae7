"""Order, bytes, errors and the end of the thread that makes batches ahead; alone, and under `fit`."""

import _thread
import gc
import signal
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

import tiny
from data.images import folder
from limbeck import Distiller, LogitTerm, fit
from limbeck.data import DataSpec, open_data
from limbeck.errors import UserError
from limbeck.tasks import Classification
from limbeck.training import evaluation, optim
from limbeck.training.guard import Skip
from limbeck.training.prefetch import DEPTH, in_background
from tiny import Loader, Net


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "limbeck-prefetch"]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    assert not workers()
    yield
    gc.collect()
    assert not workers()


def waited(condition: Any) -> bool:
    """Whether it comes true within five seconds."""
    end = time.monotonic() + 5
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return bool(condition())


@pytest.mark.parametrize("count", [0, 1, 2, 3, 20])
@pytest.mark.parametrize("depth", [1, 2, 30])
def test_order_and_number(count: int, depth: int):
    assert list(in_background(range(count), depth=depth)) == list(range(count))
    assert not workers()


def test_it_is_ahead_by_its_depth_and_no_more():
    made: list[int] = []

    def batches() -> Iterator[int]:
        for i in range(20):
            made.append(i)
            yield i

    ahead = in_background(batches())
    assert next(ahead) == 0
    assert waited(lambda: len(made) == 1 + DEPTH + 1)  # the one that is used, those that wait, the one being made
    time.sleep(0.05)
    assert len(made) == 1 + DEPTH + 1
    assert next(ahead) == 1
    assert waited(lambda: len(made) == 1 + DEPTH + 2)
    ahead.close()
    assert not workers()


def test_the_first_batch_is_made_by_the_caller_and_the_others_are_not():
    names = list(in_background(threading.current_thread().name for _ in range(3)))
    assert names == [threading.current_thread().name, "limbeck-prefetch", "limbeck-prefetch"]


@pytest.mark.parametrize("at", [0, 1, 3])
@pytest.mark.parametrize("error", [UserError("the file is gone"), KeyError("x"), SystemExit(3)])
def test_an_error_arrives_as_it_is_in_its_place(at: int, error: BaseException):
    def batches() -> Iterator[int]:
        yield from range(at)
        raise error

    seen: list[int] = []
    with pytest.raises(type(error)) as caught:
        seen.extend(in_background(batches()))
    assert caught.value is error
    assert seen == list(range(at))
    assert any(entry.name == "batches" for entry in caught.traceback)


def test_a_break_ends_the_thread():
    for batch in in_background(range(10**9)):
        if batch == 3:
            break
    assert not workers()


def test_an_error_and_an_interrupt_in_the_loop_end_the_thread():
    def use(error: BaseException) -> None:
        for batch in in_background(range(10**9)):
            if batch == 3:
                raise error

    for error in (ValueError("mine"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            use(error)
        assert not workers()


def test_ctrl_c_while_waiting_for_a_batch_ends_the_thread():
    waiting, interrupted = threading.Event(), threading.Event()

    def batches() -> Iterator[int]:
        yield 0
        waiting.set()
        interrupted.wait(60)
        yield 1

    def interrupt() -> None:
        waiting.wait()
        time.sleep(0.05)  # the other thread is on its way to wait for the second batch
        _thread.interrupt_main()
        interrupted.set()

    other = threading.Thread(target=interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores it
    try:
        other.start()
        with pytest.raises(KeyboardInterrupt):
            list(in_background(batches()))
    finally:
        signal.signal(signal.SIGINT, before)
    other.join()
    assert not workers()


def test_batches_that_were_used_are_let_go():
    class Held:
        pass

    kept: list[weakref.ref[Held]] = []

    def batches() -> Iterator[Held]:
        for _ in range(8):
            held = Held()
            kept.append(weakref.ref(held))
            yield held
            del held

    for i, held in enumerate(in_background(batches())):
        del held
        alive = [j for j, reference in enumerate(kept) if reference() is not None]
        assert min(alive, default=i) >= i  # the one in use at most, and those ahead


@pytest.mark.parametrize("memory", [None, 0])
def test_loaders_give_the_same_bytes(tmp_path: Path, memory: int | None):
    folder(tmp_path / "train", {"a": 9, "b": 9})
    folder(tmp_path / "val", {"a": 1, "b": 1})
    data = open_data(DataSpec(source=str(tmp_path), workers=0, augmentation="strong"), memory=memory)
    loader = data.train_loader(batch_size=4, seed=0)
    for epoch in range(2):
        loader.set_epoch(epoch)
        for want, got in zip(list(loader), in_background(loader), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


def in_thread(batches: Iterable[Any], device: torch.device, *, ahead: bool = True) -> Iterator[Any]:
    """`arriving` as it is for a GPU."""
    source = iter(batches)
    return in_background(evaluation.to_device(batch, device) for batch in source)


def trained(monkeypatch: pytest.MonkeyPatch, loader: Any, *, threaded: bool, accumulate: int = 1) -> dict[str, Any]:
    torch.manual_seed(0)
    distiller = Distiller(Net(4), None, Classification())
    with monkeypatch.context() as patch:
        if threaded:
            patch.setattr("limbeck.training.loading.arriving", in_thread)
            patch.setattr("limbeck.training.evaluation.arriving", in_thread)
        torch.manual_seed(1)
        fit(distiller, loader, Loader(7, 4), epochs=2, optimizer=optim.sgd(distiller, lr=0.1), accumulate=accumulate)
    return distiller.state_dict()


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", ["sharded", "DataLoader"])
def test_training_ends_with_the_same_bytes(monkeypatch: pytest.MonkeyPatch, kind: str, accumulate: int):
    x, target = tiny.images(24)
    data = DataLoader(TensorDataset(x, target), batch_size=4, shuffle=True)  # Accelerate prepares it
    loader = data if kind == "DataLoader" else Loader(24, 4)
    plain = trained(monkeypatch, loader, threaded=False, accumulate=accumulate)
    ahead = trained(monkeypatch, loader, threaded=True, accumulate=accumulate)
    assert all(torch.equal(plain[name], ahead[name]) for name in plain)


class Drawing(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Images, each with a number that is drawn from the global generator and kept."""

    def __init__(self) -> None:
        self.x, self.target = tiny.images(48)
        self.drawn: list[int] = []

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        time.sleep(0.001)  # so that it draws all through a step
        self.drawn.append(int(torch.randint(2**62, ())))
        return self.x[index], self.target[index]


class Slow(Net):
    """Leaves the thread time to draw, and draws itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.002)
        return super().forward(x)


@pytest.mark.parametrize("rewound", ["accumulate", "a step that is left out"])
def test_no_number_is_drawn_twice_where_a_step_draws_again(monkeypatch: pytest.MonkeyPatch, rewound: str):
    """The generators are moved back to draw the same dropout in two passes, while the thread makes batches."""
    data = Drawing()
    distiller = Distiller(Slow(4, dropout=0.5), Net(6), Classification(), terms={"logit": LogitTerm()})
    more: dict[str, Any] = {"accumulate": 4}
    if rewound != "accumulate":
        data.x[::16] = torch.nan
        more = {"on_bad_numbers": Skip(limit=9)}
    monkeypatch.setattr("limbeck.training.loading.arriving", in_thread)
    fit(distiller, DataLoader(data, batch_size=4), epochs=2, **more)
    assert len(set(data.drawn)) == len(data.drawn) == 96


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_training_that_is_stopped_leaves_no_thread(monkeypatch: pytest.MonkeyPatch, error: BaseException):
    class Stopping(Net):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Stopping.calls += 1
            if Stopping.calls == 3:
                raise error
            return super().forward(x)

    monkeypatch.setattr("limbeck.training.loading.arriving", in_thread)
    distiller = Distiller(Stopping(4), None, Classification())
    with pytest.raises(type(error)):
        fit(distiller, Loader(64, 4), epochs=1)
    assert not workers()


def test_on_a_cpu_there_is_no_thread():
    batches = evaluation.arriving(iter([torch.zeros(1), torch.ones(1)]), torch.device("cpu"))
    assert next(batches) == 0
    assert not workers()
    assert [float(batch) for batch in batches] == [1.0]


class FakeStream:
    """Writes down what a stream of a GPU is asked for."""

    made = 0

    def __init__(self, device: str = "fake") -> None:
        self.device = device
        self.name = f"stream {FakeStream.made}"
        FakeStream.made += 1
        self.asked: list[str] = []

    def wait_stream(self, other: "FakeStream") -> None:
        self.asked.append(f"after {other.name}")

    def record_event(self) -> str:
        return f"event of {self.name} in {threading.current_thread().name}"

    def wait_event(self, event: str) -> None:
        self.asked.append(event)


def test_on_a_gpu_the_thread_has_a_stream_of_its_own_and_each_batch_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    FakeStream.made = 0
    main = FakeStream()
    worked: list[tuple[str, str]] = []
    here = threading.local()
    streams: list[FakeStream] = []

    def make(device: str) -> FakeStream:
        streams.append(FakeStream(device))
        return streams[-1]

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda: getattr(here, "stream", main))
    monkeypatch.setattr(torch.accelerator, "set_stream", lambda stream: setattr(here, "stream", stream))
    monkeypatch.setattr(torch, "Stream", make)

    def batches() -> Iterator[int]:
        for i in range(3):
            worked.append((threading.current_thread().name, torch.accelerator.current_stream().name))
            yield i

    for i, batch in enumerate(in_background(batches())):
        assert batch == i
        assert main.asked == ["event of stream 1 in limbeck-prefetch"] * i  # the first was made on the main stream
    assert worked == [("MainThread", "stream 0"), *[("limbeck-prefetch", "stream 1")] * 2]
    assert streams[0].asked == ["after stream 0"]


@pytest.mark.gpu
def test_batches_arrive_on_a_gpu():
    gpu = torch.device("cuda")
    sent = [torch.full((64, 64), float(i)) for i in range(20)]
    for i, batch in enumerate(evaluation.arriving(sent, gpu)):
        assert batch.device.type == "cuda"
        assert bool((batch == i).all())
