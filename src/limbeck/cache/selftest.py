"""Compare a cache with the live teacher before it is trusted."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from limbeck.cache.reader import check_pixels
from limbeck.cache.shards import verify_shard
from limbeck.cache.store import Cache
from limbeck.cache.writer import bar
from limbeck.data.loader import Batch, Loader
from limbeck.distributed import collectives
from limbeck.errors import UserError
from limbeck.features.taps import Captured

BATCHES = 3
# Largest allowed difference of a row to the teacher's, as a share of the mean length of a row. Rounding to float16 is
# within 5e-4; other kernels on another machine come to 1e-6 in float32, and to percents where models run in bf16.
TOLERANCE = 2e-3
TOLERANCE_HALF = 5e-2


@dataclass(frozen=True)
class Tested:
    """What the self-test found.

    Attributes:
        rows: Images that were computed again.
        deviation: Largest difference of a row, as a share of the mean length of a row; 0 if all were equal to the byte.
    """

    rows: int
    deviation: float


def self_test(
    cache: Cache,
    views: int,
    loader: Loader,
    teacher: Callable[[Batch], Captured],
    *,
    batches: int = BATCHES,
    random: np.random.Generator | None = None,
) -> Tested:
    """Compute random batches of random views again, from the images on, and compare pixels and outputs.

    The batches are those in which the cache was computed, so that on the machine that made it, with the same settings,
    there is no difference at all; what other kernels may do is tolerated, and said.

    Args:
        cache: A filled cache.
        views: How many of its views are used.
        loader: The training loader, not sharded.
        teacher: Runs the teacher on a batch.
        batches: How many.
        random: Chooses them; other ones each time by default.

    Raises:
        UserError: If pixels or outputs differ by more than rounding.
    """
    random = random if random is not None else np.random.default_rng()
    layout = cache.card.layout
    source = loader.changed(batch_size=layout.batch_size, seed=layout.seed)
    count, worst = 0, 0.0
    for choice in random.choice(views * layout.steps, min(batches, views * layout.steps), replace=False).tolist():
        number, step = divmod(choice, layout.steps)
        view = cache.view(number)
        for batch in source.stretch(number, range(step, step + 1), parts=layout.parts):
            stored = view.rows(batch.index)
            check_pixels(batch, stored["pixels"], number, cache)
            live = cache.contents.pack(teacher(batch), cache.card.specs)
            worst = max(worst, _compare(cache, live, stored, number))
            count += len(batch.index)
    return Tested(count, worst)


def verify(cache: Cache, views: int, *, shows: bool | None = None) -> int:
    """Read every shard of the first views and compare its checksum; several processes share the work.

    Costs a pass over the files, about two seconds a GiB where they are in the page cache, and leaves them there.

    Args:
        cache: A filled cache.
        views: How many of its views are used.
        shows: Show a progress bar; by default when stderr is a terminal.

    Returns:
        Bytes that this process read.

    Raises:
        UserError: If a shard is missing or damaged.
    """
    own = [cache.path(shard) for shard in cache.shards(views)[collectives.rank() :: collectives.world_size()]]
    read = 0
    with bar(shows) as progress:
        task = progress.add_task("checksums", total=len(own), rate="")
        for path in own:
            verify_shard(path)
            read += path.stat().st_size
            progress.advance(task)
    collectives.barrier()
    return read


def _compare(cache: Cache, live: Mapping[str, Tensor], stored: Mapping[str, Tensor], view: int) -> float:
    """The largest difference of a row; what is compared is what terms get to see, so ties of the top k do no harm."""
    specs = cache.card.specs
    half = any(spec.computed in ("float16", "bfloat16") for spec in specs.values())
    allowed = TOLERANCE_HALF if half else TOLERANCE
    if all(torch.equal(live[name], stored[name]) for name in specs):
        return 0.0
    a, b = cache.unpack(live), cache.unpack(stored)
    pairs = {"output": (a.output, b.output)} | {tap: (x, b.features[tap]) for tap, x in a.features.items()}
    worst = 0.0
    for name, sides in pairs.items():
        x, y = (side.float().flatten(1) for side in sides)
        difference = float(((x - y).norm(dim=1) / x.norm(dim=1).mean().clamp_min(1e-12)).max()) if x.numel() else 0.0
        if not difference <= allowed:
            raise UserError(
                f'the teacher\'s "{name}" differs by {100 * difference:.2g}% from that of view {view} in the cache in '
                f"{cache.folder} ({100 * allowed:g}% is allowed): another version of a library? Delete the folder, and "
                "it is made again"
            )
        worst = max(worst, difference)
    return worst
