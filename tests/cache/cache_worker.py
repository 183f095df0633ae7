"""What each of two processes does in ``test_processes``: fill one cache together, train from it, and train live."""

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cache.subject import BATCH, VIEWS, data, distiller, small_shards, subject, train
from limbeck import cache
from limbeck.distributed import collectives

AUGMENTATIONS = ("standard", "strong")


def everything(folder: Path, augmentation: str) -> dict[str, Any]:
    made = small_shards(subject(folder, augmentation=augmentation), 1)
    computed = made.fill()
    tested = cache.self_test(made.cache, VIEWS, made.loader, made.teacher, batches=100)
    read = cache.verify(made.cache, VIEWS)
    made.distiller.release_teacher()
    cached = train(made.distiller, cache.CachedLoader(made.loader, made.cache))
    live = train(distiller(), data(augmentation).train_loader(batch_size=BATCH, seed=0))
    return {
        "computed": computed,
        "tested": (tested.rows, tested.deviation),
        "read": read,
        "cached": cached,
        "live": live,
    }


def work(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
    os.environ |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size)
    found = {name: everything(folder / name, name) for name in AUGMENTATIONS}
    torch.save(found, folder / f"rank{rank}.pt")
    collectives.barrier()
    dist.destroy_process_group()
