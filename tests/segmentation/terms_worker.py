"""One process of two that hold unequal shares of a batch: losses, gradients and scores of segmentation."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from limbeck.distributed import collectives
from limbeck.features.taps import Captured
from limbeck.segmentation import VOID, ChannelTerm, PixelTerm, Segmentation
from segmentation import masks

SHARES = (slice(0, 3), slice(3, 4))


def everything(own: slice = slice(0, 4)) -> dict[str, Tensor]:
    """Value and gradient of each loss, and the confusion matrix, of some of four images."""
    batch = masks.batch(4)
    batch.masks[0, :20] = VOID  # so that the processes have unlike shares of void
    batch = batch._replace(**{name: getattr(batch, name)[own] for name in ("images", "masks", "index")})
    random = torch.Generator().manual_seed(1)
    y_s, y_t = (torch.randn(4, 3, 8, 8, generator=random, dtype=torch.float64)[own] for _ in range(2))
    found: dict[str, Tensor] = {}
    task = Segmentation()
    losses: dict[str, Any] = {"kd": PixelTerm(), "cwd": ChannelTerm()}
    for name in ("task", *losses):
        leaf = y_s.clone().requires_grad_()
        if name == "task":
            value, _ = collectives.share_of_mean(task.loss(leaf, batch), len(leaf), leaf.device)
            if collectives.world_size() > 1:  # DDP's mean
                value = collectives.all_sum(value) / 2
        else:
            captured = [Captured(y, {}, target=batch.masks) for y in (leaf, y_t)]
            value = losses[name](*captured)
        value.backward()
        assert leaf.grad is not None
        found[name] = value.detach()
        found[f"{name} gradient"] = collectives.gather_rows(leaf.grad) / collectives.world_size()
    matrix = task.collect(torch.nn.Conv2d(3, 3, 1).requires_grad_(False), []) if own.stop == 0 else None
    assert matrix is None
    net = torch.nn.Conv2d(3, 3, 1)
    torch.nn.init.constant_(net.bias, 0.1)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        net.weight.copy_(torch.eye(3)[:, :, None, None])
        scored = task.collect(net, [(batch, True)])
    assert scored is not None
    return {**found, "confusion": scored}


def work(rank: int, count: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count)
    torch.save(everything(SHARES[rank]), folder / f"rank{rank}.pt")
    dist.destroy_process_group()
