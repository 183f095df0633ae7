"""What each of two processes finds in ``test_detection``; on one process the same calls give what is expected."""

import os
from pathlib import Path

import torch
import torch.distributed as dist

from detection import boxes
from limbeck.detection import Detection
from limbeck.detection.models import build_detector
from limbeck.training.evaluation import evaluate


def figures(batches: int) -> dict[str, float]:
    """Average precision of an untrained detector whose scores were made to differ, on several batches."""
    torch.manual_seed(0)
    model = build_detector("fcos-32/cifar/resnet8", num_classes=2).module
    with torch.no_grad():
        model.head.classification_head.cls_logits.weight.mul_(50)
        model.head.regression_head.bbox_reg.bias.fill_(2.0)
    loader = [boxes.batch(4, seed=number, first=4 * number) for number in range(batches)]
    return evaluate(model, Detection(model), loader, torch.device("cpu"))


def work(rank: int, world: int, folder: Path) -> None:
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    torch.save({count: figures(count) for count in (1, 3)}, folder / f"rank{rank}.pt")
    dist.destroy_process_group()
