"""Which cache it is: everything that decides what is stored, as plain values, as a short key, and in its pixels."""

import functools
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from limbeck.data import keys
from limbeck.data.loader import Loader
from limbeck.distributed import sharding

Identity = Mapping[str, Any]
"""Name to a plain value; two caches are the same where all of them are equal."""


def checksum_of(tensors: Mapping[str, Tensor]) -> str:
    """A digest of names, shapes and every byte, whatever the order of the names."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = sharding.whole(tensors[name]).cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digest_of(module: nn.Module) -> str:
    """The checksum of a module's parameters and buffers; of one that is sharded every process calls it."""
    return checksum_of(module.state_dict())


def views_of(loader: Loader, *, processes: int) -> dict[str, Any]:
    """What decides the pixels of a view; where images are mixed, also the batches that they are mixed in.

    How many views there are does not: a cache with too few of them is completed. Nor does the order of the images where
    they are not mixed, so that runs with other seeds and batch sizes can share a cache.
    """
    plan = loader.plan
    crops = plan.augment is not None and plan.augment.resized_crop
    return {
        "images": plan.count,
        "view_seed": loader.view_seed,
        "augment": vars(plan.augment) if plan.augment is not None else None,
        # "Memory" stands for squares and "Disk" for whole images, so that caches of earlier versions stay valid.
        "crops_of": ("Memory" if loader.crops_squares else "Disk") if crops else None,
        "batch_size": plan.batch_size if loader.mixes else None,
        "processes": processes if loader.mixes else None,
        **({"own": f"{plan.own.name} {plan.own.source}"} if plan.own is not None else {}),
    }


def key_of(identity: Identity) -> str:
    """Ten letters that stand for an identity, for the name of its folder."""
    return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=5).hexdigest()


def differences(there: Identity, here: Identity) -> list[str]:
    """What is not the same, as ``name: there -> here``."""
    names = sorted({*there, *here}, key=lambda name: (name not in here, name))
    return [f"{name}: {there.get(name)} -> {here.get(name)}" for name in names if there.get(name) != here.get(name)]


def sketch(images: Float32[Tensor, "n 3 h w"]) -> Float32[Tensor, " n"]:
    """A weighted sum of each image's pixels; the weights are fixed random numbers, 0.5 to 1 with a random sign.

    Up to 100 pixels a side a change of one pixel by one step of 255 moves it by more than `tolerance`; a shift or a
    mirror image moves it by far more. It costs a pass over the batch, about a thousandth of a training step.
    """
    flat = images.flatten(1)
    return flat @ _weights(flat.shape[1]).to(images.device)


def tolerance(images: Float32[Tensor, "n 3 h w"]) -> float:
    """What rounding may do to a sketch: sums are taken in another order on another machine."""
    return 1e-5 * math.sqrt(images[0].numel())


@functools.lru_cache(maxsize=2)
def _weights(count: int) -> Float32[Tensor, " count"]:
    size, sign = keys.uniforms(0, 0, keys.Stream.SKETCH, np.arange(count), 2).T
    return torch.from_numpy((0.5 + size / 2) * np.where(sign < 0.5, -1, 1)).to(torch.float32)
