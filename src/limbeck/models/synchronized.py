"""A student's own batch norms over the images of all processes."""

from collections.abc import Mapping
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from limbeck.distributed import collectives
from limbeck.errors import UserError

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@final
class SyncBatchNorm(_BatchNorm):
    """A batch norm whose statistics in training are those of the global batch.

    On one process, in evaluation, and inside :func:`limbeck.distributed.collectives.alone` it is the plain one. On
    several, mean and variance come from sums over all processes, which may have images in any number, also none, and
    gradients flow through them: four processes with n images compute what one computes with 4n. Running statistics are
    then the same on all. The state dict is that of the norm that it replaces.

    Args:
        norm: The norm to replace; parameters and buffers are shared with it.
        then: Name to module: what the replaced layer does behind its norm, in that order.

    Deviates from: ``nn.SyncBatchNorm``, which refuses tensors on a CPU (torch 2.15). Like that, each norm costs two
    messages in the forward pass and two in the backward pass; unlike that, it is written in single operations.

    References:
        S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate
        Shift", ICML 2015, algorithm 1.
    """

    def __init__(self, norm: _BatchNorm, then: Mapping[str, nn.Module]) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        for name, parameter in norm.named_parameters(recurse=False):
            setattr(self, name, parameter)
        for name, buffer in norm.named_buffers(recurse=False):
            setattr(self, name, buffer)
        for name, module in then.items():
            self.add_module(name, module)
        self.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2 or input.shape[1] != self.num_features:
            raise UserError(f"batch norm of {self.num_features} channels: got an input of {tuple(input.shape)}")

    def forward(self, input: Float[Tensor, "n c *rest"]) -> Float[Tensor, "n c *rest"]:
        """The normalized input, of its own type; the statistics are in at least float32."""
        if self.training and collectives.world_size() > 1:
            self._check_input_dim(input)
            # What crosses processes would cut compiled code into pieces elsewhere.
            output: Tensor = torch.compiler.disable(self._over_all)(input)  # pyright: ignore[reportUnknownMemberType, reportAssignmentType, reportCallIssue, reportArgumentType]
        else:
            output = super().forward(input)
        for module in self.children():
            output = module(output)
        return output

    def _over_all(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            axes, shape = [0, *range(2, x.ndim)], [1, -1] + [1] * (x.ndim - 2)
            own = wide.new_full((1,), float(x.numel() // max(self.num_features, 1)))
            total = collectives.all_sum(torch.cat([wide.sum(axes), own]))
            # Rounded for the counts, which need no gradient; in at least float32 they are exact up to 16 million.
            mean, count = total[:-1] / total[-1], total[-1].detach()
            centered = wide - mean.reshape(shape)
            variance = collectives.all_sum(centered.square().sum(axes)) / count
            if self.track_running_stats:
                self._remember(mean.detach(), variance.detach() * count / (count - 1))
            output = centered * (variance + self.eps).rsqrt().reshape(shape)
            if self.affine:
                output = output * self.weight.reshape(shape) + self.bias.reshape(shape)
            return output.to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics, as torch does: the variance is that over one less than all."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), momentum)


def synchronized(model: nn.Module) -> nn.Module:
    """The model with each batch norm in it replaced by a :class:`SyncBatchNorm`; names and weights stay.

    Do this before taps and an optimizer look at the model. timm's layers that join a norm with an activation are known,
    too.

    Raises:
        UserError: If a kind of batch norm is not known; the message names it.

    Example:
        >>> model = synchronized(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
        >>> type(model[1]).__name__, sorted(model.state_dict())[2:4]
        ('SyncBatchNorm', ['1.bias', '1.num_batches_tracked'])
    """
    for name, module in list(model.named_modules()):
        if not isinstance(module, _BatchNorm) or isinstance(module, SyncBatchNorm):
            continue
        if type(module) not in _PLAIN and not _is_joined(module):
            raise UserError(
                f'"{name}" is a {type(module).__name__}, which cannot be synchronized over processes; expected '
                "BatchNorm1d, BatchNorm2d, BatchNorm3d, or timm's BatchNormAct2d"
            )
        replaced = SyncBatchNorm(module, dict(module.named_children()))
        if name == "":
            return replaced
        model.set_submodule(name, replaced)
    return model


def _is_joined(module: nn.Module) -> bool:
    """Whether it is timm's batch norm with dropout and activation behind it."""
    if not type(module).__module__.startswith("timm."):
        return False  # without timm, whose import takes seconds
    from timm.layers.norm_act import BatchNormAct2d

    return type(module) is BatchNormAct2d
