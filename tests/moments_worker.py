"""What each of several processes does in ``test_moments_processes``; one process gives what is expected."""

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

import tiny
from distributed_worker import averaged, draw, own
from limbeck import Distiller, FeatureTerm, LabelledLogitTerm, LogitTerm, losses, norms, projectors
from limbeck.distributed import collectives
from limbeck.features import pooling
from limbeck.features.taps import Captured
from limbeck.tasks import Classification
from limbeck.terms import RelationTerm, chunked
from tiny import Batch

D_S, D_T, ROWS = 3, 5, 9
SPLITS = {2: [[1, 8], [0, 9]], 4: [[1, 0, 5, 3], [2, 1, 0, 6], [0, 0, 9, 0]]}

Make = Callable[[], FeatureTerm | RelationTerm | LogitTerm | LabelledLogitTerm]


def feature(projector: nn.Module, *, norm: str = "batch", pool: pooling.Pool = pooling.automatic, **more: Any) -> Make:
    """Makes the same term whenever it is called."""

    def build() -> FeatureTerm:
        made = {"batch": norms.BatchNorm(D_T), "none": None, "layer": norms.LayerNorm(D_T)}[norm]
        return FeatureTerm(
            "z",
            "z",
            projector=copy.deepcopy(projector),  # a state is that of one term
            student_norm=made,
            teacher_norm=made,
            student_pool=pool,
            teacher_pool=pool,
            **copy.deepcopy(more),
        ).double()

    return build


def largest_difference(y_s: Tensor, y_t: Tensor) -> Tensor:
    """A loss that is no mean over rows."""
    return (y_s - y_t).abs().sum(1).max()


def mean_difference(y_s: Tensor, y_t: Tensor) -> Tensor:
    """A loss that is one, which nobody can know but its author."""
    return (y_s - y_t).abs().mean()


def cases() -> dict[str, Make]:
    torch.manual_seed(0)
    linear, mlp = projectors.linear(D_S, D_T), projectors.mlp(D_S, D_T, hidden=4)
    biased = projectors.linear(D_S, D_T, bias=True)
    dense = pooling.spatial_positions
    inverted = projectors.linear(D_T, D_S)
    return {
        "moments log_correlation": feature(linear, correlation_loss=losses.log_correlation),
        "moments log_correlation, mlp": feature(mlp, correlation_loss=losses.log_correlation, pool=dense),
        "moments mean_squared_error": feature(linear, loss=losses.mean_squared_error, pool=dense),
        "moments mean_squared_error, inverted": lambda: FeatureTerm(
            "z",
            "z",
            projector=inverted,
            student_norm=norms.BatchNorm(D_S),
            teacher_norm=norms.BatchNorm(D_S),
            loss=losses.mean_squared_error,
            inverted=True,
        ).double(),
        "chunked log_sum": feature(linear, loss=losses.log_sum),
        "chunked log_sum, dense": feature(projectors.orthogonal(D_S, D_T), loss=losses.log_sum, pool=dense),
        "chunked smooth_l1": feature(mlp, loss=losses.smooth_l1),
        "chunked smooth_l1, bias": feature(biased, loss=losses.smooth_l1, norm="layer", pool=dense),
        "chunked squared_error": feature(biased, loss=losses.squared_error, norm="none"),
        "chunked l1": feature(linear, loss=losses.l1, pool=dense),
        "ZCA in front": feature(linear, loss=losses.log_sum, input_norm=norms.ZCA(D_S)),
        "ZCA in front, moments": feature(
            linear, correlation_loss=losses.log_correlation, pool=dense, input_norm=norms.ZCA(D_S)
        ),
        "ZCA in front, running": feature(
            linear, loss=losses.mean_squared_error, pool=dense, input_norm=norms.ZCA(D_S, momentum=0.5)
        ),
        "Ridge": feature(projectors.Ridge(D_S, D_T), loss=losses.mean_squared_error),
        "Ridge, dense": feature(projectors.Ridge(D_S, D_T), loss=losses.log_sum, norm="none", pool=dense),
        "relation": lambda: RelationTerm("z", "z", loss=losses.similarity_preserving),
        "logit, of the batch": lambda: LogitTerm(losses.pearson_distance),
        "logit, by rows": LogitTerm,
        "logit, by rows, standardized": lambda: LogitTerm(functools.partial(losses.standardized_kl, temperature=1.5)),
        "logit, by rows, dkd": LabelledLogitTerm,
        "logit, by rows, nkd": lambda: LabelledLogitTerm(losses.normalized_kl),
        "logit, own": lambda: LogitTerm(largest_difference),
        "logit, own, by rows": lambda: LogitTerm(mean_difference, mean_over_rows=True),
    }


def of_term(make: Make, split: list[int]) -> dict[str, Tensor]:
    """Value, readings, gradients as DDP would average them, and state."""
    term = make()
    if isinstance(term, nn.Module):
        term.zero_grad()
    whole_s = draw(ROWS, D_S, 2, 2, seed=2) + 3
    z_s = own(whole_s, split).clone().requires_grad_()
    z_t = own(2 * draw(ROWS, D_T, 2, 2, seed=3) - 1, split)
    # Logits of as many classes as the teacher has channels, from the same leaf.
    head = draw(D_T, D_S, seed=4)
    y_s, y_t = z_s.mean((2, 3)) @ head.T, z_t.mean((2, 3))
    target = own(torch.arange(ROWS) % D_T, split)
    value = term(Captured(y_s, {"z": z_s}, target), Captured(y_t, {"z": z_t}, target))
    value.backward()
    grads = torch.zeros_like(whole_s)
    assert z_s.grad is not None
    own(grads, split).copy_(z_s.grad)
    found = {"value": value.detach(), "dz_s": averaged(grads)}
    found |= {f"reading {name}": reading for name, reading in term.readings.items()}
    if isinstance(term, FeatureTerm):
        found |= {f"d{name}": averaged(p.grad) for name, p in term.named_parameters()}
        found |= {f"state {name}": value for name, value in term.state_dict().items()}
    return found


def gathered_rows() -> dict[str, int]:
    """How often rows are gathered for each term of the logits, on a share of the batch."""
    calls = 0
    original = collectives.gather_rows

    def counting(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return original(x)

    found: dict[str, int] = {}
    collectives.gather_rows = counting
    try:
        for name, make in cases().items():
            calls = 0
            if name.startswith("logit"):
                of_term(make, SPLITS[max(collectives.world_size(), 2)][0])
                found[name] = calls
    finally:
        collectives.gather_rows = original
    return found


def forms() -> dict[str, str]:
    """Which form each feature term has taken, on a share of the batch that would not be enough alone."""
    split = SPLITS[max(collectives.world_size(), 2)][0]
    found: dict[str, str] = {}
    for name, make in cases().items():
        term = make()
        if isinstance(term, FeatureTerm):
            z_s, z_t = own(draw(ROWS, D_S, 2, 2, seed=2), split), own(draw(ROWS, D_T, 2, 2, seed=3), split)
            term(Captured(z_s, {"z": z_s}), Captured(z_t, {"z": z_t}))
            found[name] = term.form_used.value
    return found


def everything(world_size: int) -> dict[str, dict[str, Tensor]]:
    """All cases on all splits for so many processes, be there as many or one."""
    return {f"{name} {split}": of_term(make, split) for split in SPLITS[world_size] for name, make in cases().items()}


def distiller() -> Distiller:
    """Features of a map, one term by moments and one in blocks, and a task loss."""

    def term(**loss: Any) -> FeatureTerm:
        return FeatureTerm(
            "conv2",
            "conv2",
            projector=projectors.mlp(4, 6, hidden=5),
            student_norm=norms.BatchNorm(6),
            teacher_norm=norms.BatchNorm(6),
            student_pool=pooling.spatial_positions,
            teacher_pool=pooling.spatial_positions,
            **loss,
        )

    torch.manual_seed(0)
    student, teacher = tiny.Net(4), tiny.Net(6)
    terms = {"moments": term(correlation_loss=losses.log_correlation), "blocks": term(loss=losses.log_sum)}
    return Distiller(student, teacher, Classification(), terms=terms, weights={"moments": 0.5}).double()


def step(subject: Distiller) -> dict[str, Tensor]:
    """Loss, parts and gradients of one batch, half of it on each of two processes."""
    x, target = tiny.images(8)
    result = subject(Batch(own(x.double(), [4, 4]), own(target, [4, 4])))
    result.loss.backward()
    found = {"loss": averaged(result.loss.detach())}
    found |= {f"part {name}": averaged(part) for name, part in result.parts.items()}
    for name, parameter in subject.trainable_parameters().items():
        grad = parameter.grad
        assert grad is not None, name
        found[name] = grad.full_tensor() if isinstance(grad, DTensor) else grad
    return found


def sharded(*, in_units: bool) -> dict[str, Tensor | str]:
    """The distiller wrapped as a whole in FSDP2, and, if asked for, layers, teacher and terms by themselves in it."""
    from torch.distributed.fsdp import fully_shard

    subject = distiller()
    mesh = init_device_mesh("cpu", (collectives.world_size(),))
    if in_units:
        assert isinstance(subject.student, tiny.Net)
        assert subject.teacher is not None
        units = [subject.student.conv1, subject.student.conv2, subject.teacher.model, *subject.term_modules.values()]
        for unit in units:
            fully_shard(unit, mesh=mesh)
    fully_shard(subject, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in subject.trainable_parameters().values())
    try:
        found: dict[str, Tensor | str] = dict(step(subject))
    except RuntimeError as error:
        if "does not support" not in str(error):  # the gloo of older versions scatters no sums
            raise
        return {"unsupported": str(error).splitlines()[0]}
    forms = {name: term.form_used.value for name, term in subject.terms.items() if isinstance(term, FeatureTerm)}
    return found | {f"form {name}": form for name, form in forms.items()}


def work(rank: int, world_size: int, folder: Path) -> None:
    """Run by each process."""
    torch.set_num_threads(1)
    chunked.BLOCK_ELEMENTS_CPU = 2 * D_T  # several blocks of each share
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size)
    found: dict[str, Any] = {"terms": everything(world_size), "forms": forms(), "gathered": gathered_rows()}
    if world_size == 2:
        found |= {"sharded": sharded(in_units=False), "sharded in units": sharded(in_units=True)}
    torch.save(found, folder / f"rank{rank}.pt")
    collectives.barrier()
    dist.destroy_process_group()
