"""One process that torchrun or ``accelerate launch`` started, with all that they leave in its environment."""

import os
import socket
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

import tiny
from limbeck import Distiller, fit
from limbeck.distributed import collectives
from limbeck.storage.checkpoint import Checkpoints
from limbeck.tasks import Classification
from limbeck.training import optim
from limbeck.training.guard import Skip
from tiny import Loader

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulate": {"accumulate": 2},
    "everything": {"accumulate": 3, "ema_decay": 0.9, "clip": 1.0, "on_bad_numbers": Skip()},
    "bf16": {"precision": torch.bfloat16},
    "shards": {"shard": True, "ema_decay": 0.9},
    "data loader": {},
    "alone": {"accumulate": 2},
    "resumed": {"accumulate": 2},
}


def trained(kind: str, folder: Path) -> dict[str, torch.Tensor]:
    """The bytes of student, average and terms after a training."""
    torch.manual_seed(0)
    subject = tiny.distiller(norm=True, dropout=0.3)
    if kind == "alone":
        subject = Distiller(tiny.Net(4), None, Classification())
    loader: Any = Loader(24, 4)
    if kind == "data loader":
        loader = DataLoader(TensorDataset(*tiny.images(24)), batch_size=4, shuffle=True)
    more = dict(KINDS[kind])
    if kind == "resumed":
        more["checkpoints"] = Checkpoints(folder / "checkpoint")
        fit(tiny.distiller(norm=True, dropout=0.3), Loader(24, 4), epochs=1, optimizer=optimizer, cpu=True, **more)
    result = fit(subject, loader, epochs=2, optimizer=optimizer, cpu=True, **more)
    return {
        **subject.student.state_dict(prefix="s."),
        **subject.term_modules.state_dict(prefix="t."),
        **result.student.state_dict(prefix="a."),
    }


def optimizer(distiller: Distiller) -> torch.optim.Optimizer:
    return optim.sgd(distiller, lr=0.1)


def everything(folder: Path) -> dict[str, Any]:
    return {kind: trained(kind, folder) for kind in KINDS}


def work(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
    os.environ |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_DYNAMO_BACKEND": "EAGER"}
    found = everything(folder)
    torch.save({**found, "is used": torch.distributed.is_initialized()}, folder / f"rank{rank}.pt")
    assert collectives.world_size() == world_size
    torch.distributed.destroy_process_group()
