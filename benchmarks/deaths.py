"""A training in a child process that dies at a given moment or point of writing, and what it leaves."""

import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLOCKS = ("seconds", "images_per_second", "peak_memory_mib", "share", "teacher_seconds", "teacher_share")
TOLD = ("note", "start", "preflight", "stop")  # once for each start
LIMIT = 300.0  # seconds for what should end by itself
AREAS = ("checkpoint", "cache", "other")
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod"}


@dataclass(frozen=True)
class Death:
    """How a training ends before its time.

    Attributes:
        signum: The signal.
        seconds: Moment at which it is sent; None: at a point of writing.
        area: What is being written.
        point: Which of the points of that.
        delay: Seconds behind the point.
    """

    signum: int = signal.SIGKILL
    seconds: float | None = None
    area: str = ""
    point: int = 0
    delay: float = 0.0


class Points:
    """In a child: counts the points of writing below a folder, and does something at each.

    Args:
        folder: Points elsewhere do not count.
        act: Gets what is being written (one of `AREAS`) and the number of the point, from 1.
    """

    def __init__(self, folder: Path, act: Callable[[str, int], None]) -> None:
        self.folder, self.act = str(folder), act
        self.counts = dict.fromkeys(AREAS, 0)
        synced = os.fsync

        def fsync(descriptor: int) -> None:
            self._meet(os.readlink(f"/proc/self/fd/{descriptor}"))
            synced(descriptor)

        os.fsync = fsync
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in EVENTS:
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        handle = args[-1] if event in ("os.remove", "os.rmdir") else -1  # of the folder that a relative name is in
        path = str(args[0])
        self._meet(os.path.join(os.readlink(f"/proc/self/fd/{handle}"), path) if handle >= 0 else path)

    def _meet(self, path: str) -> None:
        if path.startswith(self.folder):
            area = "checkpoint" if "/checkpoint" in path else "cache" if "/caches" in path else "other"
            self.counts[area] += 1
            self.act(area, self.counts[area])


def live(recipe: Any, folder: Path, death: Death | None) -> int:
    """Train in a child until it ends or dies; its exit code, or minus the signal. What it said is in ``said.txt``."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _be_child(recipe, folder, death, writer)
    os.close(writer)
    if death is not None and death.seconds is not None:
        is_due = not _readable(reader, death.seconds)
    else:
        is_due = _readable(reader, LIMIT) and os.read(reader, 1) == b"!"
        time.sleep(death.delay if death is not None and is_due else 0.0)
    if death is not None and is_due:
        os.kill(child, death.signum)
    if not _readable(reader, LIMIT):  # its end closes the pipe
        os.kill(child, signal.SIGKILL)
    os.close(reader)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _readable(descriptor: int, seconds: float) -> bool:
    return bool(select.select([descriptor], [], [], seconds)[0])


def _be_child(recipe: Any, folder: Path, death: Death | None, tell: int) -> None:
    from limbeck.errors import UserError
    from limbeck.runs.run import run

    code = 1
    try:
        with (folder.parent / "said.txt").open("a", encoding="utf-8") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)

        def act(area: str, number: int) -> None:
            if death is not None and (area, number) == (death.area, death.point):
                if death.delay:
                    os.write(tell, b"!")
                else:
                    os.kill(os.getpid(), death.signum)

        points = Points(folder.parent, act)
        run(recipe, folder, resume=(folder / "recipe.yaml").is_file())
        (folder.parent / "points.txt").write_text(json.dumps(points.counts), encoding="utf-8")
        code = 0
    except UserError as error:
        os.write(2, f"error: {error}\n".encode())
        code = 2
    except KeyboardInterrupt as stop:
        code = 128 + getattr(stop, "signum", signal.SIGINT)
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def halves(place: Path) -> set[Path]:
    """What a kill leaves of something that was being written or removed."""
    names = (".writing-", ".removing-")
    return {path for path in place.rglob(".*") if path.name.startswith(names) or path.name.endswith(".tmp")}


def newest(place: Path) -> dict[str, str]:
    """The last good checkpoint of every run, and the shards of every cache."""
    from limbeck.storage.checkpoint import Checkpoints

    found: dict[str, str] = {}
    for folder in place.rglob("checkpoint"):
        states = Checkpoints(folder).states()
        found |= {str(folder): states[-1].name} if states else {}
    return found | {str(path): "there" for path in place.glob("caches/*/view-*.safetensors")}


def timeless(value: Any) -> Any:
    """A record without what a clock decides."""
    if isinstance(value, dict):
        return {name: timeless(item) for name, item in value.items() if name not in CLOCKS}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def results(place: Path) -> dict[str, Any]:
    """Everything that has to be equal, of a student, a teacher that was trained for it, and a cache."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in place.rglob("*") if path.is_file() and "checkpoint" not in path.parts):
        name = str(path.relative_to(place))
        if path.suffix in (".safetensors", ".yaml") or path.name in ("student.json", "samples.json", "cache.json"):
            found[name] = path.read_bytes()
        elif path.name == "summary.json":
            found[name] = timeless(json.loads(path.read_text(encoding="utf-8")))
        elif path.name == "log.jsonl":
            records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            kept = [timeless(one) for one in records if one["kind"] not in TOLD]
            for record in kept:
                if record["kind"] == "probe":
                    record.pop("teacher", None)  # whether it is sound is looked at in each process once
                    for term in record.get("terms", {}).values():
                        # Behind a state within an epoch it may be the change since an earlier look.
                        term.get("dynamics", {}).pop("step_change", None)
            found[name] = kept
    for folder in place.rglob("checkpoint"):
        # The others may differ: an old one that was to be removed, and one that a signal asked for.
        found[str(folder.relative_to(place))] = max(path.name for path in folder.iterdir())
        found[f"halves in {folder.parent.relative_to(place)}"] = halves(folder.parent)
    return found
