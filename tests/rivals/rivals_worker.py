"""What each of two processes does in ``test_distributed``; on one process the same calls give what is expected."""

import os
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

import tiny
from distributed_worker import averaged, draw, own
from limbeck import Distiller, losses
from limbeck.distributed import collectives
from limbeck.features.taps import Captured
from limbeck.rivals import CRDTerm, HintTerm, ReviewTerm, VIDTerm, regressor
from limbeck.rivals.maps import BatchNorm2d
from limbeck.tasks import Classification
from limbeck.training import optim

SPLIT = [3, 5]  # unequal local batches
SPLITS = [SPLIT, [8, 0], [0, 8]]  # of each step
IMAGES, NEGATIVES = 20, 7
# Image 4 comes to both processes in the first batch.
INDICES = [[4, 1, 9, 4, 12, 0, 19, 7], [1, 2, 3, 5, 4, 6, 8, 9], [7, 7, 7, 10, 11, 12, 4, 0]]


class Batch(NamedTuple):
    images: Tensor
    target: Tensor
    numbers: Tensor


def fixed(index: Tensor) -> Tensor:
    """Negatives that do not depend on who draws them."""
    return (index[:, None] * 7 + torch.arange(NEGATIVES) * 3 + 1) % IMAGES


def crd(d_s: int, d_t: int, tap: str) -> CRDTerm:
    term = CRDTerm(tap, tap, d_s=d_s, d_t=d_t, images=IMAGES, negatives=NEGATIVES, width=6)
    term.draw_negatives = fixed
    return term


def terms() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    taps, mse = ["map", "vector"], losses.mean_squared_error
    found = {
        "vid": VIDTerm(taps, taps, d_s=[3, 4], d_t=[5, 6]),
        "review": ReviewTerm(taps, taps, d_s=[3, 4], d_t=[5, 6], loss=mse),
        "hint": HintTerm("map", "map", regressor=regressor(3, 5, size_s=(4, 4), size_t=(3, 3))),
        "crd": crd(4, 6, "vector"),
    }
    return {name: term.double() for name, term in found.items()}


def alone_and_together() -> dict[str, Tensor]:
    """Value, readings, gradients and buffers of each term over three batches in unequal shares."""
    found: dict[str, Tensor] = {}
    for name, term in terms().items():
        for step, (index, split) in enumerate(zip(INDICES, SPLITS, strict=True)):
            shapes_s, shapes_t = {"map": (3, 4, 4), "vector": (4,)}, {"map": (5, 3, 3), "vector": (6,)}
            x_s = {tap: own(draw(8, *s, seed=step), split).clone().requires_grad_() for tap, s in shapes_s.items()}
            x_t = {tap: own(draw(8, *s, seed=step + 9), split) for tap, s in shapes_t.items()}
            numbers = own(torch.tensor(index), split)
            output = torch.zeros(len(numbers), 2)
            term.zero_grad()
            value = term(Captured(output, x_s, index=numbers), Captured(output, x_t, index=numbers))
            value.backward()
            here = f"{name} {step}"
            found[f"{here} value"] = value.detach()
            found |= {f"{here} {key}": reading for key, reading in term.readings.items()}
            found |= {f"{here} d{key}": averaged(p.grad) for key, p in term.named_parameters()}
            found |= {f"{here} {key}": buffer.clone() for key, buffer in term.named_buffers()}
            for tap, x in x_s.items():
                grads = torch.zeros(8, *x.shape[1:], dtype=x.dtype)
                own(grads, split).copy_(x.grad if x.grad is not None else torch.zeros_like(x))
                found[f"{here} d{tap}"] = averaged(grads)
    return found


def collective() -> dict[str, Tensor]:
    x = own(draw(8, 3, seed=0), SPLIT).clone().requires_grad_()
    summed = collectives.all_sum((x**2).sum(0))
    (summed**3).sum().backward()
    grads = torch.zeros(8, 3, dtype=x.dtype)
    assert x.grad is not None
    own(grads, SPLIT).copy_(x.grad)
    numbers = collectives.gather_rows(own(torch.arange(8), SPLIT))
    return {"sum": summed.detach(), "grad": averaged(grads), "numbers": numbers}


def norm() -> dict[str, Tensor]:
    """Also far from zero, and with a share of one image."""
    found: dict[str, Tensor] = {}
    for split in (SPLIT, [1, 7]):
        subject = BatchNorm2d(3).double()
        x = own(draw(8, 3, 2, 2, seed=0) + 100, split).clone().requires_grad_()
        y = subject(x)
        weights = own(draw(8, 3, 2, 2, seed=1), split)
        collectives.all_sum((y**2 * weights).sum()).backward()
        grads, rows = torch.zeros(8, 3, 2, 2, dtype=x.dtype), torch.zeros(8, 3, 2, 2, dtype=x.dtype)
        assert x.grad is not None
        own(grads, split).copy_(x.grad)
        own(rows, split).copy_(y.detach())
        found |= {f"{split} y": collectives.sum_across(rows), f"{split} dx": averaged(grads)}
        found |= {f"{split} d{key}": averaged(p.grad) for key, p in subject.named_parameters()}
    return found


def wrapped() -> dict[str, Tensor]:
    """A distiller with all rivals as DDP sees it, three steps: weights, banks, and the teacher."""
    torch.manual_seed(collectives.rank())  # the same only after DDP has made it so
    student, teacher = tiny.Net(4), tiny.Net(6)
    rivals = {
        "vid": VIDTerm(["conv1", "conv2"], ["conv1", "conv2"], d_s=[4, 4], d_t=[6, 6]),
        "review": ReviewTerm(
            ["conv1", "conv2"], ["conv1", "conv2"], d_s=[4, 4], d_t=[6, 6], loss=losses.mean_squared_error
        ),
        "hint": HintTerm("conv2", "conv2", regressor=regressor(4, 6, size_s=(3, 3), size_t=(3, 3))),
        "crd": crd(4, 6, "fc:input"),
    }
    subject = Distiller(student, teacher, Classification(), terms=rivals, weights={"crd": 0.1}).double()
    model = nn.parallel.DistributedDataParallel(subject) if collectives.world_size() > 1 else subject
    optimizer = optim.sgd(subject, lr=0.05)
    x, target = tiny.images(8)
    found: dict[str, Tensor] = {}
    for step, index in enumerate(INDICES):
        split = [4, 4]  # DDP averages the task's gradients, which is right for equal shares
        batch = Batch(own(x.double(), split), own(target, split), own(torch.tensor(index), split))
        result = model(batch)
        optimizer.zero_grad()
        result.loss.backward()
        optim.check_gradients(subject)
        optimizer.step()
        found |= {f"{step} {name}": averaged(part) for name, part in result.parts.items()}
    return found | dict(subject.state_dict())


def everything() -> dict[str, dict[str, Tensor]]:
    return {"collectives": collective(), "norm": norm(), "terms": alone_and_together(), "wrapped": wrapped()}


def work(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size)
    torch.save(everything(), folder / f"rank{rank}.pt")
    collectives.barrier()
    dist.destroy_process_group()
