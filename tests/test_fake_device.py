"""What a GPU would run: the forward pass of everything on tensors that say they are on one, where each read is counted.

A tensor made from Python's numbers, a branch on a value or a shape that depends on one makes a GPU's step wait, and one
on another device ends it. The fake device has no kernels, so no GPU is needed, and no backward pass can be run.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import tiny
from limbeck import Distiller, FeatureTerm, LabelledLogitTerm, LogitTerm, fit, losses, norms, projectors
from limbeck.distiller import Clock
from limbeck.features import pooling
from limbeck.features.taps import Captured
from limbeck.rivals import CRDTerm, HintTerm, ReviewTerm, VIDTerm, regressor
from limbeck.tasks import Classification
from limbeck.terms import LossForm
from limbeck.training import meter
from limbeck.training.modules import Average
from losses import compile_worker
from training.test_waiting import Fixed

# Copies of fake tensors ask for their addresses.
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")

CUDA = torch.device("cuda")
READS_A_RECORD = 3  # of the losses, of the guard's flags and of the terms' readings, every meter.LOG_EVERY steps


class Counting(TorchDispatchMode):
    """Counts what a GPU would be waited for: numbers read from it, and numbers sent to it from pageable memory."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []
        self.sends: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense":
            if args[0].device.type == "cuda":
                self.reads.append(name)
            return (
                0 if args[0].dtype == torch.uint8 else 1.0 if args[0].is_floating_point() else 1
            )  # 0: nothing is broken
        if name == "_to_copy" and "device" in kwargs:
            to, since = torch.device(kwargs["device"]).type, args[0].device.type
            self.reads += [name] * (since == "cuda" and to == "cpu")
            self.sends += [name] * (since == "cpu" and to == "cuda")
        return func(*args, **kwargs)


@pytest.fixture
def fake() -> Iterator[FakeTensorMode]:
    with FakeTensorMode() as mode:
        yield mode


def counted(build: Callable[[], Callable[[], Any]]) -> Counting:
    """What the second call of something costs that was built on the device; the first may look at its input."""
    with torch.device(CUDA):
        call = build()
    with Counting():
        call()
    with Counting() as counting:
        call()
    return counting


def of_losses() -> dict[str, Callable[[], Any]]:
    def case(name: str) -> Callable[[], Any]:
        a, t = torch.randn(6, 4), torch.randn(6, 4)
        compile_worker.LABELS = torch.zeros(6, dtype=torch.long)
        return lambda: compile_worker.CASES[name](a, t)

    return {name: lambda name=name: case(name) for name in compile_worker.CASES}


MODULES: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm": lambda: norms.BatchNorm(4),
    "L2": norms.L2,
    "LayerNorm": lambda: norms.LayerNorm(4),
    "GroupNorm": lambda: norms.GroupNorm(2, 4),
    "ZCA": lambda: norms.ZCA(4),
    "ZCA training": lambda: norms.ZCA(4, momentum=0.5),
    "Cholesky": lambda: norms.Cholesky(4),
    "Cholesky training": lambda: norms.Cholesky(4, momentum=0.5),
    "mlp": lambda: projectors.mlp(4, 6, hidden=5),
    "low_rank": lambda: projectors.low_rank(4, 6, rank=2),
    "orthogonal": lambda: projectors.orthogonal(4, 6),
    "ensemble": lambda: projectors.ensemble(4, 6),
}


def of_modules() -> dict[str, Callable[[], Any]]:
    def case(name: str) -> Callable[[], Any]:
        module, x = MODULES[name](), torch.randn(12, 4)
        return lambda: module(x)

    return {name: lambda name=name: case(name) for name in MODULES}


def of_terms() -> dict[str, Callable[[], Any]]:
    def feature(form: LossForm | None, **more: Any) -> Callable[[], Any]:
        term = FeatureTerm(
            "conv2",
            "conv2",
            projector=more.pop("projector", None) or projectors.linear(4, 6),
            student_pool=pooling.spatial_positions,
            teacher_pool=pooling.spatial_positions,
            form=form,
            **more,
        )
        return term_of(term)

    def term_of(*terms: Any) -> Callable[[], Any]:
        subject = Distiller(
            tiny.Net(4, norm=True, dropout=0.1),
            tiny.Net(6),
            Classification(),
            terms={str(number): term for number, term in enumerate(terms)},
        )
        batch = (torch.rand(8, 3, 6, 6), torch.zeros(8, dtype=torch.long), torch.arange(8))
        return lambda: without_gradient(subject, batch)

    def without_gradient(subject: Distiller, batch: Any) -> Any:
        with torch.no_grad():  # the chunked form has its backward pass inside
            return subject(batch)

    batch_norms: dict[str, Any] = {
        "student_norm": lambda: norms.BatchNorm(6),
        "teacher_norm": lambda: norms.BatchNorm(6),
    }

    def normed(form: LossForm, **more: Any) -> Callable[[], Any]:
        return feature(form, **{name: norm() for name, norm in batch_norms.items()}, **more)

    def ridge() -> Callable[[], Any]:
        return feature(None, projector=projectors.Ridge(4, 6), loss=losses.mean_squared_error)

    def rival(name: str) -> Callable[[], Any]:
        term = RIVALS[name]()
        shapes_s, shapes_t = {"map": (3, 4, 4), "vector": (4,)}, {"map": (5, 3, 3), "vector": (6,)}
        index = torch.arange(8)
        sides = [
            Captured(torch.zeros(8, 2), {tap: torch.randn(8, *shape) for tap, shape in shapes.items()}, index=index)
            for shapes in (shapes_s, shapes_t)
        ]
        return lambda: term(*sides)

    return {
        "direct": lambda: normed(LossForm.DIRECT, loss=losses.log_sum),
        "moments": lambda: normed(LossForm.MOMENTS, loss=losses.mean_squared_error),
        "correlation": lambda: normed(LossForm.MOMENTS, correlation_loss=losses.log_correlation),
        "chunked": lambda: normed(LossForm.CHUNKED, loss=losses.log_sum),
        "ridge": ridge,
        "whitened": lambda: feature(None, input_norm=norms.ZCA(4, momentum=0.1), loss=losses.l1),
        "logits": lambda: term_of(LogitTerm(), LabelledLogitTerm(losses.decoupled_kl)),
        **{name: lambda name=name: rival(name) for name in RIVALS},
    }


RIVALS: dict[str, Callable[[], Any]] = {
    "vid": lambda: VIDTerm(["map", "vector"], ["map", "vector"], d_s=[3, 4], d_t=[5, 6]),
    "review": lambda: ReviewTerm(["map", "vector"], ["map", "vector"], d_s=[3, 4], d_t=[5, 6], loss=losses.l1),
    "hint": lambda: HintTerm("map", "map", regressor=regressor(3, 5, size_s=(4, 4), size_t=(3, 3))),
    "crd": lambda: CRDTerm("vector", "vector", d_s=4, d_t=6, images=20, negatives=7, width=6),
}


CASES = {**of_losses(), **of_modules(), **of_terms()}


@pytest.mark.parametrize("build", CASES.values(), ids=CASES)
def test_it_runs_on_a_gpu_and_reads_nothing_of_it(
    fake: FakeTensorMode, monkeypatch: pytest.MonkeyPatch, build: Callable[[], Any]
) -> None:
    monkeypatch.setattr(Clock, "__call__", lambda self, device, work: work())  # its events need a GPU
    counting = counted(build)
    assert counting.reads == []
    assert counting.sends == []


@pytest.mark.parametrize("options", [{}, {"clip": 1.0, "ema_decay": 0.9}], ids=["plain", "clip and average"])
def test_a_training_reads_a_gpu_at_records_only(
    fake: FakeTensorMode, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """The loop itself, with an optimizer's step, and gradients of zeros in place of a backward pass."""
    with torch.device(CUDA):
        subject = tiny.distiller(norm=True, dropout=0.1, correlation=False)
        batch = (torch.rand(8, 3, 6, 6), torch.zeros(8, dtype=torch.long))

    def backward(loss: Tensor) -> None:
        for parameter in subject.trainable_parameters().values():
            parameter.grad = torch.zeros_like(parameter)

    monkeypatch.setattr(Tensor, "backward", backward)
    monkeypatch.setattr(Clock, "__call__", lambda self, device, work: work())
    monkeypatch.setattr(Distiller, "to", lambda self, device: self)
    monkeypatch.setattr(copy, "deepcopy", lambda x, copied=copy.deepcopy: copied(x, {id(fake): fake}))
    monkeypatch.setattr("limbeck.training.fit._own_device", lambda *, cpu: CUDA)
    monkeypatch.setattr("limbeck.training.fit.random_state", lambda device: {})
    monkeypatch.setattr("limbeck.training.fit.sharded", lambda loader, device: loader)
    monkeypatch.setattr("limbeck.training.loading.arriving", lambda batches, device, ahead: iter(batches))
    monkeypatch.setattr(meter, "LOG_EVERY", 2)
    found: list[Counting] = []
    for steps in (2, 6):
        parameters = subject.trainable_parameters().values()
        optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, foreach=True)  # the fused kernel has no fake
        with Counting() as counting:
            fit(subject, Fixed([batch] * steps), epochs=1, optimizer=optimizer, **options)
        found.append(counting)
    assert len(found[1].reads) - len(found[0].reads) <= 2 * READS_A_RECORD
    assert found[1].sends == []


def test_an_average_is_on_the_device_but_for_its_counter(fake: FakeTensorMode, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent to the other processes is all on the device: a group of GPUs sends nothing else."""
    monkeypatch.setattr(copy, "deepcopy", lambda x, copied=copy.deepcopy: copied(x, {id(fake): fake}))
    with torch.device(CUDA):
        student = tiny.Net(4, norm=True)
    with Counting():
        average = Average(student, 0.9)
    assert {tensor.device.type for tensor in (*average.module.parameters(), *average.module.buffers())} == {"cuda"}
    assert average.n_averaged.device.type == "cpu"


def test_the_count_sees_a_read_and_a_send(fake: FakeTensorMode) -> None:
    x = torch.ones(3, device=CUDA)
    with Counting() as counting:
        float(x.sum())
        x.cpu()
        torch.ones(3).to(CUDA)
    assert (len(counting.reads), len(counting.sends)) == (2, 1)
