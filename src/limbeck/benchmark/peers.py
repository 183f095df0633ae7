"""The same pair trained by other packages, each as its own documentation runs it: float32, ordinary layout.

Nothing of theirs is made slower or faster here, but for timm's flags, which are timed as a line of their own. A peer
that cannot take a pair is left out, and the reason is said.
"""

import copy
import importlib
import importlib.util
import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.benchmark.loops import Step, plain
from limbeck.errors import UserError
from limbeck.models import Model
from limbeck.models.stages import stages

TIMM, TIMM_FAST, TORCHDISTILL = "timm task", "timm task, bf16 channels-last", "torchdistill SRD"
LEARNING_RATE = 1e-3


def peers(student: Model, teacher: Model, *, say: Callable[[str], None]) -> dict[str, Step]:
    """A step of each peer that can train this pair, on copies of the models.

    Args:
        student: The student, on the device; not changed.
        teacher: The teacher, on the device; not changed.
        say: Told which peer is left out, and why.
    """
    found: dict[str, Step] = {}
    made: dict[str, Callable[[], Step]] = {
        TIMM: lambda: timm_task(student, teacher, fast=False),
        TIMM_FAST: lambda: timm_task(student, teacher, fast=True),
        TORCHDISTILL: lambda: torchdistill_srd(student, teacher),
    }
    for name, make in made.items():
        try:
            found[name] = make()
        except UserError as reason:
            say(f"{name}: skipped: {reason}")
    return found


def timm_task(student: Model, teacher: Model, *, fast: bool) -> Step:
    """A step with timm's ``FeatureDistillationTask``, as its ``train.py`` has it.

    Args:
        student: The student.
        teacher: The teacher.
        fast: With the flags ``--amp --amp-dtype bfloat16 --channels-last`` of that script.

    Raises:
        UserError: A model is not one of timm's.
    """
    from timm.task import FeatureDistillationTask

    for model in (student, teacher):
        if not hasattr(model.module, "forward_head"):
            raise UserError(f"{model.name} is not a model of timm")
    device = _device(student)
    task: Any = FeatureDistillationTask(
        student_model=_copied(student.module),
        teacher_model=_copied(teacher.module),
        criterion=nn.CrossEntropyLoss(),
        distill_loss_weight=5.0,
        task_loss_weight=1.0,
        device=device,
        verbose=False,
    )
    task.to(device).train()
    if fast:
        task.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(task.trainable_module.parameters(), lr=LEARNING_RATE, momentum=0.9)

    def forward(images: Tensor, labels: Tensor) -> Tensor:
        if fast:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast):
            return task(images, labels)["loss"]

    return plain(forward, optimizer)


def torchdistill_srd(student: Model, teacher: Model) -> Step:
    """The step of torchdistill's example around its box, which reads the loss and its meters every time.

    Raises:
        UserError: torchdistill is not installed.
    """
    box = torchdistill_box(student, teacher)
    log: Any = importlib.import_module("torchdistill.misc.log")  # optional: type checkers need not know it
    metrics = log.MetricLogger(delimiter="  ")
    metrics.add_meter("lr", log.SmoothedValue(window_size=1, fmt="{value}"))

    def step(images: Tensor, labels: Tensor) -> None:
        loss = box.forward_process(images, labels, {})
        box.post_forward_process(loss=loss)
        metrics.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
        if torch.isnan(loss) or torch.isinf(loss):
            raise RuntimeError(f"torchdistill's loss is {float(loss)}")

    return step


def torchdistill_box(student: Model, teacher: Model) -> Any:
    """The box of torchdistill with the terms and wrappers of its SRD configuration, around copies of the models.

    Raises:
        UserError: torchdistill is not installed.
    """
    if importlib.util.find_spec("torchdistill") is None:
        raise UserError('it is not installed; pip install "limbeck[bench]"')
    logging.getLogger("torchdistill").setLevel(logging.ERROR)
    make_box: Any = importlib.import_module("torchdistill.core.distillation").get_distillation_box
    maps = [_with_map(model) for model in (student, teacher)]
    images = torch.zeros(2, 3, student.input.size, student.input.size, device=_device(student))
    narrow, wide = (_width(module, path, images) for module, path in maps)
    config = {
        "num_epochs": 1,
        "train_data_loader": {},  # the batches come from outside
        "teacher": {**_srd_side(maps[1][1], wide, None), "requires_grad": False},
        "student": {**_srd_side(maps[0][1], wide, narrow), "requires_grad": True},
        "optimizer": {"key": "SGD", "kwargs": {"lr": LEARNING_RATE, "momentum": 0.9, "weight_decay": 1e-4}},
        "criterion": _srd_criterion(),
    }
    box: Any = make_box(maps[1][0], maps[0][0], {}, config, images.device, None, False, 1.0)
    box.pre_epoch_process(epoch=0)
    return box


def _srd_side(path: str, width: int, source: int | None) -> dict[str, Any]:
    """The wrapper of one model: pooling, a linear layer on the student's side, batch norm."""
    wrapped: dict[str, Any] = {
        "input_module": {"path": f"model.{path}", "io": "output"},
        "norm_kwargs": {"num_features": width, "eps": 0.0001, "affine": False},
    }
    if source is not None:
        wrapped["linear_kwargs"] = {"in_features": source, "out_features": width}
    return {
        "forward_proc": "forward_batch_only",
        "auxiliary_model_wrapper": {"key": "SRDModelWrapper", "kwargs": wrapped},
        "sequential": [],
        "forward_hook": {"input": [], "output": [f"model.{path}", "norm_layer"]},
        "wrapper": None,
    }


def _srd_criterion() -> dict[str, Any]:
    """Cross entropy and SRD, which reads the wrappers' norms, as its documentation has it."""
    ends = {
        f"{side}_{part}_module_{what}": value
        for side in ("student", "teacher")
        for part, path in (("feature", "norm_layer"), ("linear", "."))
        for what, value in (("path", path), ("io", "output"))
    }
    entropy = {
        "criterion": {"key": "CrossEntropyLoss", "kwargs": {"reduction": "mean"}},
        "criterion_wrapper": {
            "key": "SimpleLossWrapper",
            "kwargs": {
                "input": {"is_from_teacher": False, "module_path": ".", "io": "output"},
                "target": {"uses_label": True},
            },
        },
        "weight": 1.0,
    }
    srd = {"key": "SRDLoss", "kwargs": {**ends, "exponent": 4.0, "temperature": 1.0, "reduction": "batchmean"}}
    terms = {"ce": entropy, "srd": {"criterion": srd, "weight": 1.0}}
    return {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}}


class _TokensAsMap(nn.Module):
    """A ViT of timm with its tokens as a map in a submodule, which is what torchdistill's SRD can read."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.map = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        tokens = self.model.forward_features(images)
        patches = tokens[:, self.model.num_prefix_tokens :].transpose(1, 2)
        side = math.isqrt(patches.shape[2])
        self.map(patches.reshape(*patches.shape[:2], side, side))
        return self.model.forward_head(tokens)


def _with_map(model: Model) -> tuple[nn.Module, str]:
    """A copy of a model, and its submodule whose output is the last map."""
    module = _copied(model.module)
    if hasattr(module, "num_prefix_tokens"):
        return _TokensAsMap(module), "map"
    return module, stages(model)[-1]


def _width(module: nn.Module, path: str, images: Tensor) -> int:
    """Channels of a submodule's output."""
    from limbeck.distiller import evaluating
    from limbeck.features.taps import Taps

    with evaluating(module):
        return Taps(module, [path])(images).features[path].shape[1]


def _device(model: Model) -> torch.device:
    return next(model.module.parameters()).device


def _copied(module: nn.Module) -> nn.Module:
    """A trainable copy; a frozen teacher's parameters are not trainable, and a peer freezes in its own way."""
    return copy.deepcopy(module).requires_grad_(True)
