"""Compile distillers with the real compiler and compare with plain ones; print what was found as JSON.

In a process of its own, which has no run-time shape checks: as a user has it.
"""

import copy
import json
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.optim.swa_utils import AveragedModel

from limbeck import Distiller, FeatureTerm, LogitTerm, losses, models, norms, projectors
from limbeck.assembly.features import pooled_shape
from limbeck.features import pooling
from limbeck.tasks import Classification
from limbeck.training.evaluation import evaluate, evaluate_terms

SIZE, CLASSES = 16, 5


def make(student: str, *, tap: str | None = None) -> Distiller:
    """A small CNN as the teacher; the student tapped in front of its classifier, or inside."""
    torch.manual_seed(0)
    s, t = (models.build(name, num_classes=CLASSES, size=SIZE) for name in (student, "small/cnn-4"))
    name = tap if tap is not None else s.penultimate
    pool = pooling.token_mean(1) if tap is not None else pooling.vector
    d_s, d_t = pooled_shape(s, name, pool)[-1], pooled_shape(t, t.penultimate, pooling.vector)[-1]
    feature = FeatureTerm(
        name,
        t.penultimate,
        projector=projectors.linear(d_s, d_t),
        student_norm=norms.BatchNorm(d_t),
        teacher_norm=norms.BatchNorm(d_t),
        correlation_loss=losses.log_correlation,
        student_pool=pool,
        teacher_pool=pooling.vector,
    )
    return Distiller(s.module, t.module, Classification(), terms={"feature": feature, "logit": LogitTerm()}).train()


def batch(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(rows, 3, SIZE, SIZE, generator=generator)
    return images, torch.randint(CLASSES, (rows,), generator=generator)


def step(subject: Distiller, rows: int, seed: int) -> dict[str, Tensor]:
    """All that a step leaves."""
    subject.zero_grad()
    result = subject(batch(rows, seed))
    result.loss.backward()
    found = {"loss": result.loss.detach(), "output": result.output.detach()} | result.parts | result.readings
    found |= {f"d{name}": p.grad for name, p in subject.named_parameters() if p.grad is not None}
    return found | {name: buffer.double() for name, buffer in subject.student.named_buffers()}


def apart(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Largest difference, relative to the largest element of each tensor."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[k] - theirs[k]).abs().max() / theirs[k].abs().max().clamp(min=1e-3)) for k in theirs)


def compared(plain: Distiller, rows: list[int]) -> dict[str, Any]:
    torch.compiler.reset()
    compiled = copy.deepcopy(plain)
    names, state = list(compiled.state_dict()), torch.get_rng_state()
    compiled.compile_parts(batch(8, 0))
    found: dict[str, Any] = {"drew": not torch.equal(state, torch.get_rng_state()), "apart": 0.0, "compiled": []}
    for seed, count in enumerate(rows):
        counters.clear()
        torch.manual_seed(seed)
        theirs = step(plain, count, seed)
        torch.manual_seed(seed)
        found["apart"] = max(found["apart"], apart(step(compiled, count, seed), theirs))
        found["compiled"].append(counters["stats"].get("unique_graphs", 0))
    counters.clear()
    loader = [batch(6, 7), batch(3, 8)]
    device = torch.device("cpu")
    average = AveragedModel(compiled.student, use_buffers=True)
    average.update_parameters(compiled.student)
    scores = [evaluate(m, compiled.task, loader, device) for m in (compiled.student, average.module, plain.student)]
    losses_ = [evaluate_terms(d, d.student, loader, device)["loss"] for d in (compiled, plain)]
    found["scores"] = [score["loss"] for score in scores] + losses_
    found["compiled in evaluation"] = counters["stats"].get("unique_graphs", 0)
    found["same names"] = names == list(compiled.state_dict()) == list(plain.state_dict())
    found["copies are plain"] = copy.deepcopy(compiled)._calls == {}
    found["hooks left"] = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in compiled.modules())
    return found


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(torch.relu(self.conv(x)).mean((2, 3))))


def main() -> None:
    if sys.argv[1] == "cnn":
        found = compared(make("small/cnn-2"), [8, 8, 5, 8, 7, 3])
    elif sys.argv[1] == "vit":
        found = compared(make("small/vit-32", tap="blocks.3"), [8, 8, 5, 8, 7, 3])
    else:
        torch.manual_seed(0)
        found = compared(Distiller(Dropping(), None, Classification()), [8, 8])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
