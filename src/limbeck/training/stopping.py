"""A wish to stop, that comes as a signal, is kept until a training can grant it."""

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, final

import torch

from limbeck.distributed import collectives

SIGNALS = (signal.SIGTERM, signal.SIGINT)
TOGETHER = 2.0  # seconds in which a second signal is the same wish: terminals and launchers send it to every process


@final
class Stopping:
    """Inside it, SIGTERM and SIGINT are remembered, and do nothing more.

    Somebody who presses Ctrl-C again, two seconds later or more, does not want to wait: that is a KeyboardInterrupt.
    Handlers that somebody else has set stay, and so do all in a thread that is not the main one, where none can be set.

    Args:
        active: Whether to do anything.

    Example:
        >>> with Stopping() as stopping:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     stopping.agreed(torch.device("cpu")) == signal.SIGTERM
        True
    """

    def __init__(self, *, active: bool = True) -> None:
        self._active = active and threading.current_thread() is threading.main_thread()
        self._found: dict[signal.Signals, Any] = {}
        self._process = os.getpid()
        self._signum = 0
        self._since = 0.0

    def __enter__(self) -> "Stopping":
        ours = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
        for signum in SIGNALS if self._active else ():
            if signal.getsignal(signum) == ours[signum]:
                self._found[signum] = signal.signal(signum, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for signum, handler in self._found.items():
            signal.signal(signum, handler)

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker that was forked: the parent ends it, and Ctrl-C is not for it
            if signum == signal.SIGTERM:
                os._exit(128 + signum)
            return
        if self._signum and signum == signal.SIGINT and time.monotonic() - self._since > TOGETHER:
            signal.default_int_handler(signum, frame)
        if not self._signum:
            self._signum, self._since = signum, time.monotonic()

    def agreed(self, device: torch.device) -> int:
        """The signal that any of the processes got, or 0; the same on all of them.

        Args:
            device: One that the processes can talk through.
        """
        if collectives.world_size() == 1:
            return self._signum  # the device need not be asked
        return int(collectives.max_across(torch.tensor([self._signum], device=device)))
