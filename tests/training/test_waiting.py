"""Nothing of a step waits for the device: what a device would have to be asked is counted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import tiny
from limbeck import Distiller, fit
from limbeck.logs.runlog import RunLog
from limbeck.tasks import Classification
from limbeck.training import meter
from limbeck.training.guard import Guard

# Each of these hands a number, or a shape that depends on numbers, from the device to the host.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique_dim", "_unique2", "item"}


class Reads(TorchDispatchMode):
    """Counts the operations that would wait for a GPU. A copy to the CPU of what lies on the CPU is no operation, so
    ``Tensor.cpu`` is counted by itself."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.count = 0
        copy = Tensor.cpu

        def cpu(tensor: Tensor, *args: Any) -> Tensor:
            self.count += 1
            return copy(tensor, *args)

        monkeypatch.setattr(Tensor, "cpu", cpu)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masked = name in ("index", "index_put", "index_put_") and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        if name in WAITING or masked:
            self.count += 1
        return func(*args, **(kwargs or {}))


class GpuMeter(meter.Meter):
    """Believes that the losses are on a GPU, where reading one waits."""

    def __init__(self, log: RunLog, counters: Any, epoch: int, device: torch.device, guard: Any, clock: Any) -> None:
        del device
        super().__init__(log, counters, epoch, torch.device("cuda"), guard, clock)


def gpu_guard(*values: Any, **named: Any) -> Guard:
    """Believes the same. Its own answers are for the CPU, which is where the processes talk here."""
    made = Guard(*values, **named)
    made.reads_at_once = False
    return made


def alone() -> Distiller:
    return Distiller(tiny.Net(4), None, Classification())


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (alone, {}),
        (tiny.distiller, {}),
        (tiny.distiller, {"clip": 1.0, "ema_decay": 0.9}),
        (tiny.distiller, {"precision": torch.bfloat16}),
        (lambda: tiny.distiller(correlation=False, norm=True, dropout=0.5), {"accumulate": 2}),
        (lambda: tiny.distiller(correlation=False), {}),
    ],
    ids=["alone", "projector and logits", "clip and average", "bf16", "accumulate", "log_sum"],
)
def test_a_gpu_is_read_from_at_records_only(
    make: Callable[[], Distiller], options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs of 40 and of 80 steps differ in the records that 40 steps bring, three reads each, and in nothing else."""
    monkeypatch.setattr("limbeck.training.fit.Meter", GpuMeter)
    monkeypatch.setattr("limbeck.training.fit.Guard", gpu_guard)
    monkeypatch.setattr("limbeck.losses.features.is_read_at_once", lambda x: False)
    counted: list[int] = []
    for steps in (40, 80):
        loader = Fixed(list(tiny.Loader(4, 4)) * (steps * options.get("accumulate", 1)))
        with RunLog(tmp_path / str(steps)) as log, monkeypatch.context() as patch, Reads(patch) as reads:
            fit(make(), loader, epochs=1, log=log, cpu=True, **options)
        counted.append(reads.count)
    records = 40 // meter.LOG_EVERY
    # An average asks its own counter, which stays on the CPU, twice a step (torch's AveragedModel).
    own = 2 * 40 if "ema_decay" in options else 0
    assert counted[1] - counted[0] - own <= 3 * records


def test_the_count_sees_a_read(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(3)
    with Reads(monkeypatch) as reads:
        x.sum().item()
        assert reads.count == 1
        bool(x.isfinite().all())
        assert reads.count == 2
        x.cpu()
        assert reads.count == 3
        x[x > 0]
        assert reads.count == 4


class Fixed:
    """The same batches in each epoch, as a ``ShardedLoader``."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        return iter(self.batches)

    def set_epoch(self, epoch: int) -> None:
        del epoch

    def shard(self, rank: int, world_size: int) -> "Fixed":
        del rank, world_size
        return self
