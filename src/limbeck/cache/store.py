"""A cache's folder: `cache.json`, which says what it is, and the shards of each view."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Int64
from torch import Tensor

from limbeck.cache.contents import Contents, Spec
from limbeck.cache.identity import Identity, differences
from limbeck.cache.shards import damaged, open_shard, shard_bytes, write_shard
from limbeck.data.loader import Batch, Loader
from limbeck.distributed import collectives
from limbeck.errors import UserError
from limbeck.features.taps import Captured
from limbeck.storage.files import save_json
from limbeck.storage.shared import check_free
from limbeck.storage.untrusted import parse_json

CARD = "cache.json"
FORMAT = 1
# A shard is what a kill can cost, and what a batch in another order has to look into: neither too large nor too many.
SHARD_BYTES = 32 << 20
SHARD_IMAGES = 8192
EXTRA = {"index": Spec((), "int32", "int64"), "pixels": Spec((), "float32", "float32")}


@dataclass(frozen=True)
class Layout:
    """How the images of a view are laid out in shards, in the batches in which the teacher saw them.

    Attributes:
        batch_size: Of the global batch.
        seed: Of the order.
        parts: Slices that a batch was computed in: the number of processes.
        steps: Batches of a view.
        batches: Batches of a shard; the last shard of a view has what is left.
    """

    batch_size: int
    seed: int
    parts: int
    steps: int
    batches: int

    @property
    def shards(self) -> int:
        """Shards of a view."""
        return -(-self.steps // self.batches)

    def steps_of(self, number: int) -> range:
        """Batches of a shard."""
        return range(number * self.batches, min((number + 1) * self.batches, self.steps))


class Shard(NamedTuple):
    """Which shard: of which view, and which of its shards."""

    view: int
    number: int


@dataclass(frozen=True)
class Card:
    """What `cache.json` holds.

    Attributes:
        identity: Everything that decides the stored rows.
        layout: How they are laid out.
        specs: What is stored for each image.
        images: Images of the training set.
        classes: Columns of the teacher's output.
        made_by: Versions and machine; rows are equal to the byte only where these are the same.
    """

    identity: dict[str, Any]
    layout: Layout
    specs: dict[str, Spec]
    images: int
    classes: int
    made_by: dict[str, str]


def plan_cache(
    folder: Path,
    identity: Identity,
    contents: Contents,
    *,
    loader: Loader,
    teacher: Callable[[Batch], Captured],
    parts: int = 1,
    made_by: Mapping[str, str] | None = None,
) -> "Cache":
    """The cache in a folder, or the plan of one; nothing is written yet.

    Args:
        folder: Where it is, or would be.
        identity: What decides the stored rows; `contents.settings()` and `views_of(loader)` are a part of it.
        contents: What is kept.
        loader: The training loader, not sharded; its batch size and order are those in which the teacher is run.
        teacher: Runs the teacher; called once, on one batch, to see what it gives, where there is no cache yet.
        parts: Number of processes that train together, whose slices the teacher sees.
        made_by: Versions and machine, for the record.

    Raises:
        UserError: If the folder holds another cache (the message names what differs), or something else.
    """
    identity = dict(json.loads(json.dumps(dict(identity))))  # as it is read back: tuples are lists
    check_free(folder, CARD, kind="cache", choose="another folder")
    if (folder / CARD).is_file():
        return Cache(folder, _card_of(folder, identity), contents)
    plan = loader.plan
    first = loader.changed(batch_size=plan.batch_size, seed=plan.seed)
    captured = teacher(next(first.stretch(0, range(1), parts=parts)))
    specs = contents.specs(captured)
    bytes_a_batch = plan.batch_size * sum(spec.row_bytes for spec in (specs | EXTRA).values())
    batches = max(1, min(SHARD_BYTES // bytes_a_batch, SHARD_IMAGES // plan.batch_size))
    layout = Layout(plan.batch_size, plan.seed, parts, loader.steps_of_view, batches)
    card = Card(dict(identity), layout, specs, plan.count, captured.output.shape[-1], dict(made_by or {}))
    return Cache(folder, card, contents)


@final
class Cache:
    """The teacher's outputs for some views of the training images.

    Each shard is a safetensors file with its own checksum, written at once or not at all: a writer that was killed goes
    on with the shards that are missing, and several can write at the same time. Shards are mapped into memory, so that
    processes on one machine share them.

    Made by `plan_cache`, filled by `limbeck.cache.fill`, read by `limbeck.cache.CachedLoader`.

    Args:
        folder: Where it is.
        card: What it is of.
        contents: What is kept of a forward pass.
    """

    def __init__(self, folder: Path, card: Card, contents: Contents) -> None:
        self.folder = folder
        self.card = card
        self.contents = contents
        self._sizes: dict[int, int] = {}  # rows to bytes of a file: whole shards are all alike

    def begin(self) -> None:
        """Write `cache.json`, if there is none, by the first process; take over the one that another run wrote.

        Raises:
            UserError: If another run began another cache here since this one was planned.
        """
        if collectives.rank() == 0:
            values = {"format": FORMAT, **asdict(self.card)}
            save_json({**values, "checksum": _checksum(values)}, self.folder / CARD, only_new=True)
        collectives.barrier()
        self.card = _card_of(self.folder, self.card.identity)

    def path(self, shard: Shard) -> Path:
        """The file of a shard."""
        return self.folder / f"view-{shard.view:04d}-{shard.number:05d}.safetensors"

    def shards(self, views: int) -> list[Shard]:
        """All shards of the first views."""
        return [Shard(view, number) for view in range(views) for number in range(self.card.layout.shards)]

    def missing(self, views: int) -> list[Shard]:
        """Those that are not there."""
        return [shard for shard in self.shards(views) if not self.path(shard).is_file()]

    def estimate(self, views: int) -> int:
        """Bytes of the first views, to the byte, from the shapes alone."""
        return views * sum(self._shard_bytes(number) for number in range(self.card.layout.shards))

    def bytes_missing(self, views: int) -> int:
        """Bytes of those shards of the first views that are not there."""
        return sum(self._shard_bytes(shard.number) for shard in self.missing(views))

    def write(self, shard: Shard, tensors: Mapping[str, Tensor]) -> None:
        """Write a shard: what `contents` packed, with `index` and `pixels`.

        Raises:
            UserError: If it cannot be written, or if the folder was removed since `begin`.
        """
        if not (self.folder / CARD).is_file():
            raise UserError(f"{self.folder} was removed while the cache was written; start again to make it again")
        write_shard(tensors, self.path(shard))

    def view(self, view: int) -> "View":
        """A view, opened for reading."""
        shards: list[dict[str, Tensor]] = []
        for number in range(self.card.layout.shards):
            path = self.path(Shard(view, number))
            shards.append(open_shard(path))
            self._check(path, shards[-1])
        return View(view, shards, self)

    def unpack(self, rows: Mapping[str, Tensor]) -> Captured:
        """What the teacher gave, from stored rows."""
        return self.contents.unpack(rows, self.card.specs, classes=self.card.classes)

    def _shard_bytes(self, number: int) -> int:
        layout = self.card.layout
        steps = layout.steps_of(number)
        rows = min(steps.stop * layout.batch_size, self.card.images) - steps.start * layout.batch_size
        if rows not in self._sizes:
            empty = {
                name: torch.zeros(rows, *spec.shape, dtype=getattr(torch, spec.stored))
                for name, spec in (self.card.specs | EXTRA).items()
            }
            self._sizes[rows] = shard_bytes(empty)
        return self._sizes[rows]

    def _check(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        for name, spec in (self.card.specs | EXTRA).items():
            found = tensors.get(name)
            if found is None or found.shape[1:] != spec.shape or found.dtype != getattr(torch, spec.stored):
                raise damaged(path, f"no {name} of shape {spec.shape} and {spec.stored}")


@final
class View:
    """One view, opened: where each image is, and the mapped shards."""

    def __init__(self, number: int, shards: list[dict[str, Tensor]], cache: Cache) -> None:
        self.number = number
        self._shards = shards
        self._cache = cache
        self._shard = torch.full((cache.card.images,), -1, dtype=torch.int32)
        self._row = torch.zeros(cache.card.images, dtype=torch.int32)
        for at, tensors in enumerate(shards):
            index = tensors["index"].long()
            if len(index) and not 0 <= int(index.min()) <= int(index.max()) < cache.card.images:
                raise damaged(cache.path(Shard(number, at)), "an index is out of range")
            self._shard[index] = at
            self._row[index] = torch.arange(len(index), dtype=torch.int32)

    def rows(self, index: Int64[Tensor, " n"]) -> dict[str, Tensor]:
        """What is stored for these images, `pixels` included.

        Raises:
            UserError: If the cache has not one of them.
        """
        shard, row = self._shard[index], self._row[index].long()
        if len(lost := index[shard < 0]):
            raise UserError(
                f"the cache in {self._cache.folder} has no outputs for image {int(lost[0])} of view {self.number}; it "
                "was unreadable when the cache was made: delete the folder to make the cache again"
            )
        names = [*self._cache.card.specs, "pixels"]
        numbers = shard.unique().tolist()
        if len(numbers) == 1:
            return {name: self._shards[numbers[0]][name].index_select(0, row) for name in names}
        first = self._shards[0]
        found = {name: first[name].new_empty(len(index), *first[name].shape[1:]) for name in names}
        for number in numbers:
            at = (shard == number).nonzero()[:, 0]
            for name in names:
                found[name][at] = self._shards[number][name].index_select(0, row[at])
        return found


def _card_of(folder: Path, identity: Identity) -> Card:
    """The card of a cache that is there, which has to be of this identity."""
    card = _read(folder / CARD)
    if changed := differences(card.identity, identity):
        raise UserError(f"{folder} holds another cache ({'; '.join(changed)}); choose another folder")
    return card


def _read(path: Path) -> Card:
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise UserError(f"{path} has format {values['format']}, and this version reads {FORMAT}; delete its folder")
        if values.pop("checksum", None) not in (None, _checksum(values)):  # None: of a version that wrote none
            raise ValueError("its checksum differs")
        specs = {
            str(name): Spec(
                tuple(int(side) for side in spec["shape"]),
                _number_format(spec["stored"]),
                _number_format(spec["computed"]),
                bool(spec["channels_last"]),
            )
            for name, spec in values["specs"].items()
        }
        return Card(
            {str(name): value for name, value in values["identity"].items()},
            _layout(values["layout"]),
            specs,
            int(values["images"]),
            int(values["classes"]),
            {str(name): str(value) for name, value in values["made_by"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read ({error}); delete its folder to make the cache again") from error


def _checksum(values: Mapping[str, Any]) -> str:
    # As it is read back, where tuples are lists.
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16).hexdigest()


def _layout(values: dict[str, Any]) -> Layout:
    layout = Layout(**{name: int(value) for name, value in values.items()})
    if min(layout.batch_size, layout.parts, layout.steps, layout.batches) < 1:
        raise ValueError("its layout holds no images")
    return layout


def _number_format(name: str) -> str:
    if not isinstance(getattr(torch, name, None), torch.dtype):
        raise ValueError(f"{name!r} is no number format")
    return name
