"""What Limbeck adds to a training step: the full step against its floor, interleaved, as a ratio.

    python benchmarks/step.py --student cifar/resnet20 --teacher cifar/resnet56 --size 32

The floor is the two networks and the optimizer alone: teacher forward without gradient, student forward and backward on
cross entropy, SGD; in the same number format and layout as the full step, which adds input transforms, taps, projector,
norms, LogSum and KL. Rounds alternate between both, so what else the machine does falls on both. Needs quiet cores.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from limbeck import Distiller, FeatureTerm, LogitTerm, losses, models, norms, projectors
from limbeck.hardware import PRECISIONS, apply_settings, choose
from limbeck.models import InputTransform
from limbeck.optim import sgd
from limbeck.recipes.build import tap_shape
from limbeck.tasks import Classification

CLASSES = 100


def main() -> None:
    """Time both, print a line and a JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="cifar/resnet20")
    parser.add_argument("--teacher", default="cifar/resnet56")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    assert device is not None
    student = models.build(args.student, num_classes=CLASSES, size=args.size)
    teacher = models.build(args.teacher, num_classes=CLASSES, size=args.size)
    d_s, d_t = tap_shape(student, student.penultimate)[-1], tap_shape(teacher, teacher.penultimate)[-1]
    feature = FeatureTerm(
        student.penultimate,
        teacher.penultimate,
        projector=projectors.linear(d_s, d_t),
        student_norm=norms.BatchNorm(d_t),
        teacher_norm=norms.BatchNorm(d_t),
        correlation_loss=losses.log_correlation,
    )
    task = Classification(student_input=InputTransform(student.input), teacher_input=InputTransform(teacher.input))
    distiller = Distiller(student.module, teacher.module, task, terms={"feature": feature, "logit": LogitTerm()})
    distiller.to(device).train()
    images = torch.rand(args.batch_size, 3, args.size, args.size, device=device)
    batch = (images, torch.randint(CLASSES, (args.batch_size,), device=device))
    settings = choose(distiller, batch, precision="auto", memory_format="auto", device=device)
    apply_settings(distiller, settings, device)
    optimizer = sgd(distiller, lr=0.001)
    dtype = PRECISIONS[settings.precision]

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)

    def floor() -> None:
        with autocast():
            with torch.no_grad():
                teacher.module(images)
            loss = F.cross_entropy(student.module(images).float(), batch[1])
        finish(loss)

    def full() -> None:
        with autocast():
            loss = distiller(batch).loss
        finish(loss)

    def finish(loss: torch.Tensor) -> None:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    ratios, floors = interleave(floor, full, args.rounds, device)
    low, high = statistics.quantiles(ratios, n=4)[0], statistics.quantiles(ratios, n=4)[2]
    result = {
        "student": args.student,
        "teacher": args.teacher,
        "size": args.size,
        "batch_size": args.batch_size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "settings": f"{settings.precision} {settings.memory_format}",
        "full / floor": round(statistics.median(ratios), 3),
        "quartiles": [round(low, 3), round(high, 3)],
        "floor, ms": round(1000 * statistics.median(floors), 1),
    }
    print(json.dumps(result))


def interleave(
    floor: Callable[[], None], full: Callable[[], None], rounds: int, device: torch.device
) -> tuple[list[float], list[float]]:
    """Ratio of each round's two steps, and the floor's seconds; the first three rounds warm up."""
    ratios: list[float] = []
    floors: list[float] = []
    for index in range(rounds + 3):
        one, two = timed(floor, device), timed(full, device)
        if index >= 3:
            ratios.append(two / one)
            floors.append(one)
    return ratios, floors


def timed(step: Callable[[], None], device: torch.device) -> float:
    """Seconds of one step, waiting for the device."""
    if device.type != "cpu":
        torch.accelerator.synchronize()
    started = time.perf_counter()
    step()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
