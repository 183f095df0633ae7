"""Modules that do not train: a teacher for good, any module for a while."""

import contextlib
from collections.abc import Generator

import torch
from torch import nn

from limbeck.errors import UserError


class FrozenTeacher(nn.Module):
    """A module that is in eval mode and without gradient, whatever is done to the module that holds it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "FrozenTeacher":
        """Stay in eval mode; the argument is there because ``nn.Module.train`` passes it."""
        del mode
        super().train(False)
        return self


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Generator[nn.Module, None, None]:
    """Put a module in eval mode, without gradient, and give it and all in it back in the modes that they had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield module
    finally:
        for part, mode in modes:
            part.training = mode


def narrow_type(module: nn.Module) -> torch.dtype | None:
    """The type of a module's parameters, if it is narrower than float32; it reads images of that type alone."""
    narrow = (torch.bfloat16, torch.float16)
    return next((p.dtype for p in module.parameters() if p.dtype in narrow), None)


def refuse_shared(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse a teacher that holds a parameter of the student, which would be frozen with it."""
    held = {id(p) for p in student.parameters()}
    shared = [name for name, p in teacher.named_parameters() if id(p) in held]
    if shared:
        raise UserError(
            f"student and teacher share {shared[0]}, and the teacher is frozen; give the student a copy (copy.deepcopy)"
        )
