"""What each of two processes does in ``test_guard_processes``: faults in the data of one, stopped at or left out."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import guarded
import tiny
from guarded import Planted
from limbeck.distributed import collectives
from limbeck.errors import UserError
from limbeck.training.fit import fit
from limbeck.training.guard import Guard, Skip

FAULTS: dict[str, dict[str, Any]] = {
    "input of rank 1": {"inputs": ((1, 1),), "rank": 1},
    "gradient of rank 1": {"gradients": ((1, 1),), "rank": 1},
    "gradient of rank 0": {"gradients": ((1, 2),), "rank": 0},
}


def without(fault: dict[str, Any]) -> Planted:
    """The same loader, which does not give the bad batch on any process."""
    loader = Planted(draws=False)
    loader.left_out = (*fault.get("inputs", ()), *fault.get("gradients", ()))
    return loader


def stopped(call: Callable[[], Any]) -> str:
    try:
        call()
    except UserError as error:
        return str(error)
    return "not stopped"


def late(*values: Any, **named: Any) -> Guard:
    """A guard that believes to be on a GPU."""
    guard = Guard(*values, **named)
    guard.reads_at_once = False
    return guard


def everything(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, fault in FAULTS.items():
        place = folder / name.replace(" ", "-")
        left_out = guarded.train(Planted(**fault, draws=False), skip=Skip(factor=1.0), random=False, folder=place)
        found[name] = {
            "state": left_out.state,
            "skipped": left_out.result.counters.skipped,
            "expected": guarded.train(without(fault), random=False).state,
            "records": [r for r in tiny.records(place) if r["kind"] == "bad"] if collectives.rank() == 0 else [],
            "stopped": stopped(
                lambda fault=fault, place=place: guarded.train(
                    Planted(**fault, draws=False), random=False, folder=place / "stop"
                )
            ),
        }
    with_everything = guarded.train(Planted(gradients=((1, 1),), rank=1), skip=Skip())
    found["everything"] = {"state": with_everything.state, "skipped": with_everything.result.counters.skipped}
    fit.__globals__["Guard"] = late
    found["late"] = stopped(
        lambda: guarded.train(Planted(inputs=((1, 1),), rank=1), random=False, folder=folder / "late")
    )
    found["broken"] = broken()
    return found


def broken() -> str:
    """A buffer that is not finite on one process alone, at the end of an epoch."""

    class Breaking(Planted):
        def __iter__(self) -> Any:
            yield from super().__iter__()
            if collectives.rank() == 1:
                subject.student.get_buffer("norm.running_var").fill_(float("nan"))

    subject = guarded.distiller(random=False)
    return stopped(lambda: fit(subject, Breaking(), epochs=2, cpu=True))


def work(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
    os.environ |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size)
    found = everything(folder / "two")
    torch.save(found, folder / f"rank{rank}.pt")
    collectives.barrier()
    dist.destroy_process_group()
