"""How the processes of a run find each other."""

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState  # pyright: ignore[reportMissingTypeStubs]
from torch._C._distributed_c10d import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from limbeck.distributed import collectives
from limbeck.errors import UserError


def meet(*, on_cpu: bool, timeout: float) -> torch.device:
    """Set up the process group, where a launcher started several processes, and give this process's device.

    Args:
        on_cpu: Stay on the CPU.
        timeout: Seconds after which a process that waits for another gives up.

    Raises:
        UserError: If torchrun started the processes again in a way in which they could not find each other.
    """
    # Without a GPU it has to be told "cpu", or it does not see that there are several processes.
    cpu = on_cpu or not torch.accelerator.is_available()
    limit = timedelta(seconds=timeout)
    state = PartialState(cpu=cpu, timeout=limit, **_fresh_store(limit))
    return _device_of(state)


def first_sees(fact: bool) -> bool:
    """What the first process sees of the disk, on all of them: another run may change it between two looks."""
    if collectives.world_size() == 1:
        return fact
    return collectives.from_first("yes" if fact else "", _device_of(PartialState())) == "yes"


def _device_of(state: PartialState) -> torch.device:
    return torch.device(state.device or "cpu")  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]


def _fresh_store(timeout: timedelta) -> dict[str, Any]:
    """Where the processes leave their addresses, if torchrun has started them again.

    It keeps one store for all its starts (torch 2.15; "torchelastic restarts", pytorch issue 135712), in which they
    would read the addresses of the dead, and wait for them. On one machine the number of the start tells them apart;
    machines count their starts each for itself.
    """
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    is_shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if restarts == "0" or not is_shared or dist.is_initialized():
        return {}
    if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        raise UserError(
            "torchrun started processes again on several machines with one store for all starts, in which they do not "
            "find each other; set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 where torchrun is started"
        )
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, world_size, is_master=False, timeout=timeout)
    return {"store": PrefixStore(f"restart-{restarts}", store), "rank": rank, "world_size": world_size}
