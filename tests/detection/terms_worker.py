"""What each of two processes does in ``test_processes``; on one process the same calls give what is expected."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from limbeck import FeatureTerm, losses, norms, projectors
from limbeck.detection import DenseHeadTerm, FGDTerm, ForegroundTerm
from limbeck.distributed import collectives
from limbeck.features import pooling
from limbeck.features.taps import Captured

SPLIT = [1, 3]  # unequal local batches


def sides() -> tuple[Captured, Captured]:
    """Of the global batch, in double precision; the first image has no box, so one process has no foreground."""
    random = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    target = torch.tensor([[2.0, 2.0, 20.0, 14.0, 1.0], [9.0, 9.0, 31.0, 31.0, 0.0]], dtype=torch.float64).repeat(
        4, 1, 1
    )
    target[0, :, 4] = -1
    student = Captured(draw(4, 6, 8), {"a": draw(4, 3, 4, 4)}, target)
    return student, Captured(draw(4, 6, 8), {"b": draw(4, 5, 4, 4)}, target)


def own(captured: Captured) -> Captured:
    """The rows of this process."""
    if collectives.world_size() == 1:
        return captured
    first = sum(SPLIT[: collectives.rank()])
    rows = slice(first, first + SPLIT[collectives.rank()])
    assert captured.target is not None
    return captured._replace(
        output=captured.output[rows],
        features={name: feature[rows] for name, feature in captured.features.items()},
        target=captured.target[rows],
    )


def terms() -> dict[str, ForegroundTerm | DenseHeadTerm | FGDTerm]:
    torch.manual_seed(0)
    inner = FeatureTerm(
        "a",
        "b",
        projector=projectors.linear(3, 5).double(),
        student_norm=norms.BatchNorm(5),
        teacher_norm=norms.BatchNorm(5),
        correlation_loss=losses.log_correlation,
        student_pool=pooling.vector,
        teacher_pool=pooling.vector,
    )
    return {
        "foreground": ForegroundTerm(inner, stride=8, background=0.5),
        "heads": DenseHeadTerm(3),
        "fgd": FGDTerm("a", "b", d_s=3, d_t=5, stride=8).double(),
    }


def everything() -> dict[str, Tensor]:
    """Value of each term, and its gradient on the student's side: of this process's rows, as DDP would average it."""
    found: dict[str, Tensor] = {}
    for name, term in terms().items():
        student, teacher = (own(side) for side in sides())
        feature, output = student.features["a"].requires_grad_(), student.output.requires_grad_()
        value = term(student._replace(output=output, features={"a": feature}), teacher)
        value.backward()
        reached = output.grad if name == "heads" else feature.grad
        assert reached is not None
        found[name] = value.detach()
        found[f"{name} gradient"] = collectives.gather_rows(reached) / collectives.world_size()
    return found


def work(rank: int, world: int, folder: Path) -> None:
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    torch.save(everything(), folder / f"rank{rank}.pt")
    dist.destroy_process_group()
