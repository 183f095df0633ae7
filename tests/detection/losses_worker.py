"""Detectors' own losses on several processes, weighed as the distiller does; on one they are what is expected."""

import functools
import importlib.util
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from limbeck.detection import Detection, DetectionBatch
from limbeck.detection.models import build_detector
from limbeck.distributed import collectives

SPLITS = ([1, 3], [4, 0])  # the first image has no box; a process without images
NAMES = ("fcos-32/cifar/resnet8", "retinanet-32/cifar/resnet8", "ssdlite/torchvision/mobilenet_v3_large")
if importlib.util.find_spec("transformers") and importlib.util.find_spec("scipy"):
    NAMES = (*NAMES, "rtdetr-32/transformers/r18vd")
COUNTS = (0, 3, 1, 2)  # boxes of each image
SIDE = 64


def batch() -> DetectionBatch:
    """Four images with unlike numbers of boxes, some of them smaller and some larger."""
    random = torch.Generator().manual_seed(5)
    corner = 30 * torch.rand(4, 3, 2, generator=random)
    extent = 8 + 26 * torch.rand(4, 3, 2, generator=random)
    labels = torch.randint(3, (4, 3), generator=random)
    there = torch.arange(3) < torch.tensor(COUNTS)[:, None]
    return DetectionBatch(
        images=torch.zeros(4, 3, SIDE, SIDE),
        boxes=torch.cat([corner, corner + extent], -1) * there[..., None],
        labels=torch.where(there, labels, -1),
        crowd=torch.zeros(4, 3, dtype=torch.bool),
        areas=extent.prod(-1),
        sizes=torch.full((4, 2), SIDE),
        scales=torch.ones(4, 2),
        index=torch.arange(4),
    )


@functools.cache
def of(name: str) -> tuple[nn.Module, Tensor]:
    """A detector and its output for four images."""
    torch.manual_seed(0)
    detector = build_detector(name, num_classes=3, size=SIDE).module.eval()
    with torch.no_grad():
        output = detector(torch.rand(4, 3, SIDE, SIDE))
    if not name.startswith("rtdetr"):  # which has boxes in its output, and matches them in float32
        output = (output + torch.randn(output.shape, generator=torch.Generator().manual_seed(1))).double()
    return detector, output


def everything(split: list[int], names: tuple[str, ...] = NAMES) -> dict[str, Tensor]:
    """The mean of the processes' losses of each detector, and the gradient on the output that DDP would apply."""
    found: dict[str, Tensor] = {}
    rank, world = collectives.rank(), collectives.world_size()
    first = sum(split[:rank])
    rows = slice(first, first + split[rank]) if world > 1 else slice(None)
    own = DetectionBatch(*(column[rows] for column in batch()))
    for name in names:
        detector, output = of(name)
        output = output[rows].clone()
        output.requires_grad_()
        loss = Detection(detector).loss(output, own)
        loss, _ = collectives.share_of_mean(loss, len(output), torch.device("cpu"))
        loss.backward()
        assert output.grad is not None
        found[name] = collectives.sum_across(loss.detach()) / world
        found[f"{name} gradient"] = collectives.gather_rows(output.grad) / world
    return found


def work(rank: int, world: int, folder: Path) -> None:
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    torch.save([everything(split) for split in SPLITS], folder / f"rank{rank}.pt")
    dist.destroy_process_group()
