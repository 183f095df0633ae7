"""What two processes do in ``test_probe``; started with "compiled", what one process does with the real compiler."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import probed
import tiny
from limbeck import Distiller
from limbeck.diagnostics import Probe
from limbeck.distributed import collectives


def work(rank: int, world_size: int, folder: Path) -> None:
    """Train with a probe and without; each process keeps what it has."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
    os.environ |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size)
    found = {}
    for every in (0, 2):
        trained = probed.train(every=every, folder=folder / f"every{every}")
        records = trained.probe.records if trained.probe is not None else []
        found[every] = {"state": trained.state, "steps": [record["step"] for record in records]}
    found["sharded"] = looked_at_sharded(world_size)
    torch.save(found, folder / f"rank{rank}.pt")
    collectives.barrier()
    dist.destroy_process_group()


def looked_at_sharded(world_size: int) -> bool:
    """Whether a student that no process has whole is looked at."""
    subject = tiny.distiller()
    fully_shard(subject.student, mesh=init_device_mesh("cpu", (world_size,)))
    return Probe(subject, tiny.Batch(*tiny.images(16))).run(0, 0.0) is not None


def compiled() -> dict[str, object]:
    """Steps of a compiled distiller with a look after each, and without."""
    from torch._dynamo.utils import counters

    states, compiles = [], []
    for looks in (False, True):
        subject: Distiller = tiny.distiller(norm=True, dropout=0.3)
        batch = tiny.Batch(*tiny.images(8))
        subject.compile_parts(batch)
        subject.train()
        probe = Probe(subject, tiny.Batch(*tiny.images(16, seed=9)), every=1)
        optimizer = torch.optim.SGD(subject.trainable_parameters().values(), lr=0.1)
        torch.manual_seed(0)
        torch._dynamo.reset()  # or the second one would find the code of the first
        counters.clear()
        for step in range(4):
            if looks:
                probe(step, 0.0)
            optimizer.zero_grad()
            subject(batch).loss.backward()
            optimizer.step()
        states.append({**subject.student.state_dict(), **subject.term_modules.state_dict()})
        compiles.append(counters["stats"]["unique_graphs"])
    return {"same": tiny.same_bytes(*states), "compiles": compiles, "looks": len(probe.records)}


if __name__ == "__main__" and sys.argv[1:] == ["compiled"]:
    print(json.dumps(compiled()))
