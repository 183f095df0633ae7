"""Fill a cache: walk the views of the training loader, run the teacher, write the shards that are missing."""

import contextlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from limbeck.cache.identity import sketch
from limbeck.cache.store import Cache, Shard
from limbeck.data.loader import Batch, Loader
from limbeck.distiller import Distiller
from limbeck.distributed import collectives
from limbeck.errors import UserError
from limbeck.features.taps import Captured
from limbeck.training.evaluation import to_device

GIB = 1 << 30
_STALE = 3600.0  # seconds after which half a file belongs to no living writer: a shard takes a second


@dataclass(frozen=True)
class LiveTeacher:
    """Runs a distiller's teacher on a batch, as a step of training does.

    Attributes:
        distiller: Whose teacher, taps and task; laid out in memory as in training.
        device: Where it is.
        precision: Of the run's autocast.
    """

    distiller: Distiller
    device: torch.device
    precision: torch.dtype = torch.float32

    def __call__(self, batch: Batch) -> Captured:
        """The teacher's output and features, on the device.

        Raises:
            UserError: If there is no teacher.
        """
        moved = to_device(batch, self.device)
        enabled = self.precision != torch.float32
        with torch.autocast(self.device.type, dtype=self.precision, enabled=enabled):
            captured = self.distiller.capture_teacher(moved)
        if captured is None:
            raise UserError("a model that learns alone has no teacher, and so nothing to keep in a cache")
        return captured._replace(index=batch.index)


def check_room(cache: Cache, views: int, *, limit: float) -> int:
    """Refuse a cache that is larger than allowed, or than the disk has room for; before anything is written.

    Args:
        cache: The planned cache.
        views: How many views it shall have.
        limit: GiB that it may take.

    Returns:
        Its bytes.

    Raises:
        UserError: If there is no room; the message says what would make it smaller.
    """
    total = cache.estimate(views)
    a_row = total / (views * cache.card.images)
    text = f"the cache takes {total / GIB:.3g} GiB ({cache.card.images} images x {views} views x {a_row:,.0f} bytes)"
    smaller = "fewer --cache-views, --cache-top-k, fewer images"
    smaller += ", --cache-precision half" if cache.contents.exact else ""
    smaller += ", or a feature that is pooled" if cache.contents.taps and cache.contents.reduction is None else ""
    if total > limit * GIB:
        raise UserError(f"{text}, and --cache-limit allows {limit:g} GiB; smaller by {smaller}")
    place = next(path for path in (cache.folder, *cache.folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    if cache.bytes_missing(views) > free:
        raise UserError(f"{text}, and {free / GIB:.3g} GiB are free in {place}; smaller by {smaller}")
    return total


def fill(
    cache: Cache, views: int, loader: Loader, teacher: Callable[[Batch], Captured], *, shows: bool | None = None
) -> int:
    """Compute and write what is missing of the first views; several processes share the work.

    The teacher sees the batches in which the view's epoch of training has them, also the short one that training drops:
    in float32 on a CPU it gives the same bits. A kill costs the shard that was being computed.

    Args:
        cache: The planned or half filled cache.
        views: How many views it shall have.
        loader: The training loader, not sharded.
        teacher: Runs the teacher on a batch, for instance a `LiveTeacher`.
        shows: Show a progress bar; by default when stderr is a terminal.

    Returns:
        Images that this process computed.

    Raises:
        UserError: If an output cannot be stored, or the disk is full.
    """
    cache.begin()
    layout = cache.card.layout
    rank, world = collectives.rank(), collectives.world_size()
    _remove_stale(cache)
    # By number, not by place in the list of missing ones, which another process may be making shorter.
    own = [s for s in cache.missing(views) if (s.view * layout.shards + s.number) % world == rank]
    source = loader.changed(batch_size=layout.batch_size, seed=layout.seed)
    count = sum(len(layout.steps_of(shard.number)) for shard in own) * layout.batch_size
    done, started = 0, time.perf_counter()
    with bar(shows) as progress:
        task = progress.add_task("teacher cache", total=count, rate="")
        for shard in own:
            rows: list[dict[str, Tensor]] = []
            for batch in source.stretch(shard.view, layout.steps_of(shard.number), parts=layout.parts):
                rows.append(_rows(cache, batch, teacher(batch)))
                done += len(batch.index)
                rate = done * world / max(time.perf_counter() - started, 1e-9)
                progress.update(task, completed=done, rate=f"{rate:,.0f} images/s")
            _write(cache, shard, rows)
    collectives.barrier()
    return done


def _rows(cache: Cache, batch: Batch, captured: Captured) -> dict[str, Tensor]:
    packed = cache.contents.pack(captured, cache.card.specs)
    return packed | {"index": batch.index.int().cpu(), "pixels": sketch(batch.images).cpu()}


def _write(cache: Cache, shard: Shard, rows: list[dict[str, Tensor]]) -> None:
    if not rows:
        raise UserError(f"not one image of a stretch of view {shard.view} can be read, so there is nothing to cache")
    cache.write(shard, {name: torch.cat([row[name] for row in rows]) for name in rows[0]})


def _remove_stale(cache: Cache) -> None:
    """Half files of a writer that was killed; a living one may be another run's."""
    if collectives.rank() == 0:
        for path in cache.folder.glob(".*.tmp"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _STALE:
                    path.unlink()


def bar(shows: bool | None) -> Progress:
    """A bar with a rate and the time left, of the first process; by default only on a terminal.

    Tasks that are added to it need a field `rate`.
    """
    console = Console(stderr=True)
    visible = (console.is_terminal if shows is None else shows) and collectives.rank() == 0
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
        console=console,
        disable=not visible,
        transient=True,
    )
