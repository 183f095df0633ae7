"""Count the bytes of the collectives of real training steps, by each process of ``test_scale``."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import processes_worker
import tiny
from limbeck import Distiller, FeatureTerm, LogitTerm, fit, losses, norms, projectors
from limbeck.distributed import collectives
from limbeck.tasks import Classification
from limbeck.terms import LossForm, RelationTerm
from limbeck.training import modules as trained
from limbeck.training import optim

ROWS, STUDENT, TEACHER = 4, 4, 6  # rows of each process, widths of the features


def feature(**loss: Any) -> FeatureTerm:
    return processes_worker.feature("fc:input", STUDENT, TEACHER, **loss)


def whitened() -> FeatureTerm:
    """A norm in front of the projector, whose statistics are those of all rows."""
    return FeatureTerm(
        "fc:input",
        "fc:input",
        projector=projectors.linear(STUDENT, TEACHER),
        input_norm=norms.BatchNorm(STUDENT),
        loss=losses.mean_squared_error,
        form=LossForm.DIRECT,
    )


TERMS: dict[str, Callable[[], Any]] = {
    "alone": lambda: None,
    "moments": lambda: feature(correlation_loss=losses.log_correlation),
    "moments, mse": lambda: feature(loss=losses.mean_squared_error),
    "blocks, log_sum": lambda: feature(loss=losses.log_sum),
    "blocks, l1": lambda: feature(loss=losses.l1),
    "direct": lambda: feature(loss=losses.log_sum, form=LossForm.DIRECT),
    "norm in front": whitened,
    "relation": lambda: RelationTerm("fc:input", "fc:input", loss=losses.similarity_preserving),
    "logit": LogitTerm,
    "logit, gathered": lambda: LogitTerm(losses.pearson_distance),
}


def distiller(term: Any) -> Distiller:
    torch.manual_seed(0)
    student, teacher = tiny.Net(STUDENT, norm=True), tiny.Net(TEACHER, norm=True)
    terms = {} if term is None else {"term": term}
    return Distiller(student, teacher if terms else None, Classification(), terms=terms)


class Counter:
    """Bytes by kind, of what a process hands to a collective; gradients and buffers go through DDP's own calls."""

    def __init__(self) -> None:
        self.bytes: dict[str, int] = {"all_reduce": 0, "all_gather": 0, "broadcast": 0}
        self._originals = {name: getattr(dist, name) for name in self.bytes}
        self._coalesced = dist._broadcast_coalesced
        self._ddp = trained.DistributedDataParallel

    def __enter__(self) -> "Counter":
        for name in self.bytes:
            setattr(dist, name, self._counting(name))
        dist._broadcast_coalesced = self._broadcast
        trained.in_whole.__globals__["DistributedDataParallel"] = self._parallel
        return self

    def __exit__(self, *error: object) -> None:
        for name, original in self._originals.items():
            setattr(dist, name, original)
        dist._broadcast_coalesced = self._coalesced
        trained.in_whole.__globals__["DistributedDataParallel"] = self._ddp

    def _counting(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            sent: Tensor = args[1] if name == "all_gather" else args[0]
            self.bytes[name] += sent.nbytes
            return self._originals[name](*args, **more)

        return call

    def _broadcast(self, group: Any, tensors: list[Tensor], *more: Any) -> Any:
        self.bytes["broadcast"] += sum(tensor.nbytes for tensor in tensors)
        return self._coalesced(group, tensors, *more)

    def _parallel(self, *args: Any, **more: Any) -> nn.Module:
        model = self._ddp(*args, **more)
        model.register_comm_hook(None, self._gradient)
        return model

    def _gradient(self, state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        self.bytes["all_reduce"] += bucket.buffer().nbytes
        mean = bucket.buffer().div_(dist.get_world_size())
        future = self._originals["all_reduce"](mean, async_op=True).get_future()
        return future.then(lambda done: done.value()[0])


def counted(name: str) -> dict[str, Any]:
    """Bytes of the second step of a training, and the sizes that they depend on."""
    term = TERMS[name]()
    made = distiller(term)
    after: list[dict[str, int]] = []
    with Counter() as counter:
        looking = processes_worker.Looking(lambda step, epoch: after.append(dict(counter.bytes)))
        fit(
            made,
            tiny.Loader(8 * ROWS, ROWS * collectives.world_size()),
            epochs=1,
            optimizer=optim.sgd(made, lr=0.01),
            probe=looking,
            cpu=True,
        )
    return {
        "step": {kind: after[2][kind] - after[1][kind] for kind in after[2]},  # after[0] is in front of the first
        "third": {kind: after[3][kind] - after[2][kind] for kind in after[3]},
        "parameters": sum(p.numel() for p in made.trainable_parameters().values()),
        "buffers": sum(buffer.nbytes for buffer in made.buffers()),
        "form": term.form_used.value if isinstance(term, FeatureTerm) else None,
    }


def work(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
    os.environ |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size)
    torch.save({name: counted(name) for name in TERMS}, folder / f"rank{rank}.pt")
    collectives.barrier()
    dist.destroy_process_group()
