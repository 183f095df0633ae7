"""What each of several processes does in ``test_projectors``; on one process the same calls give what is expected."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distributed_worker import averaged, draw, own
from limbeck import FeatureTerm, losses, norms, projectors
from limbeck.errors import UserError
from limbeck.features.taps import Captured

SPLITS = [[3, 5], [1, 6], [7, 0]]


def state(module: nn.Module) -> dict[str, Tensor]:
    return {f"state {name}": value for name, value in module.state_dict().items()}


def ridge() -> dict[str, Tensor]:
    projector = projectors.Ridge(3, 4, momentum=0.4).double()
    for i, split in enumerate(SPLITS):
        z_s, z_t = draw(sum(split), 3, seed=i) + i, draw(sum(split), 4, seed=10 + i)
        projector.observe(own(z_s, split), own(z_t, split))
    return state(projector)


def term(whitening: Callable[..., nn.Module]) -> dict[str, Tensor]:
    """A term whose norms whiten with running statistics, over several batches."""
    torch.manual_seed(0)
    built = FeatureTerm(
        "z",
        "z",
        projector=projectors.orthogonal(3, 4).double(),
        student_norm=whitening(4, momentum=0.4, eps=0.1).double(),
        teacher_norm=whitening(4, momentum=0.4, eps=0.1).double(),
        loss=losses.mean_squared_error,
    )
    values: dict[str, Tensor] = {}
    for i, split in enumerate(SPLITS):
        built.zero_grad()
        z_s, z_t = own(draw(sum(split), 3, seed=i) + i, split), own(draw(sum(split), 4, seed=10 + i), split)
        loss = built(Captured(z_s, {"z": z_s}), Captured(z_t, {"z": z_t}))
        loss.backward()
        (parameter,) = built.parameters()
        values |= {f"loss {i}": loss.detach(), f"gradient {i}": averaged(parameter.grad)}
    return values | state(built)


def everything() -> dict[str, Any]:
    return {"ridge": ridge(), "zca": term(norms.ZCA), "cholesky": term(norms.Cholesky)}


def refused() -> str:
    try:
        projectors.Ridge(3, 4).observe(own(torch.ones(1, 3), [1, 0]), own(torch.ones(1, 4), [1, 0]))
    except UserError as error:
        return str(error)
    return "not refused"


def work(rank: int, processes: int, folder: Path) -> None:
    """Run by each process."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=processes)
    torch.save({**everything(), "refused": refused()}, folder / f"rank{rank}.pt")
    dist.destroy_process_group()
