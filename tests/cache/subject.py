"""A small teacher and student on real, embedded images, and a cache between them."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck import Distiller, FeatureTerm, LogitTerm, cache, fit, losses, models, norms, projectors
from limbeck.data import Batch, Data, DataSpec, Loader, open_data
from limbeck.distributed import collectives
from limbeck.features.taps import Captured
from limbeck.models import InputTransform
from limbeck.tasks import Classification

CPU = torch.device("cpu")
IMAGES, BATCH, VIEWS = 90, 20, 3


def data(augmentation: str = "standard", *, images: int = IMAGES) -> Data:
    return open_data(DataSpec(source="digits", augmentation=augmentation, train_limit=images))


def distiller(*, seed: int = 0) -> Distiller:
    """A CNN of width 2 that learns from one of width 4, whose weights are random."""
    torch.manual_seed(seed)
    student, teacher = (models.build(f"small/cnn-{width}", num_classes=10, size=8) for width in (2, 4))
    feature = FeatureTerm(
        student.penultimate,
        teacher.penultimate,
        projector=projectors.linear(4, 8),
        student_norm=norms.BatchNorm(8),
        teacher_norm=norms.BatchNorm(8),
        correlation_loss=losses.log_correlation,
    )
    task = Classification(student_input=InputTransform(student.input), teacher_input=InputTransform(teacher.input))
    terms = {"feature": feature, "logit": LogitTerm()}
    return Distiller(student.module, teacher.module, task, terms=terms)


class Counting:
    """A live teacher that counts the images which it sees."""

    def __init__(self, subject: Distiller, precision: torch.dtype = torch.float32) -> None:
        self._live = cache.LiveTeacher(subject, CPU, precision)
        self.images = 0

    def __call__(self, batch: Batch) -> Captured:
        self.images += len(batch.images)
        return self._live(batch)


@dataclass
class Subject:
    """A planned cache and what it is of."""

    distiller: Distiller
    loader: Loader
    teacher: Counting
    cache: cache.Cache
    views: int

    def fill(self) -> int:
        return cache.fill(self.cache, self.views, self.loader, self.teacher)

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.cache.folder.glob("[!.]*"))}


def subject(
    folder: Path,
    *,
    augmentation: str = "standard",
    views: int = VIEWS,
    batch_size: int = BATCH,
    seed: int = 0,
    view_seed: int | None = None,
    teacher_seed: int = 0,
    opened: Data | None = None,
    precision: torch.dtype = torch.float32,
    **contents: Any,
) -> Subject:
    """A cache that is planned, and not yet filled."""
    given = opened if opened is not None else data(augmentation)
    made = distiller(seed=teacher_seed)
    assert made.teacher is not None
    loader = given.train_loader(batch_size=batch_size, seed=seed, views=views, view_seed=view_seed)
    kept = cache.Contents(("fc:input",), **{"exact": True, **contents})
    world = collectives.world_size()
    identity = {
        "teacher_weights": cache.digest_of(made.teacher.model),
        "data": given.fingerprint,
        **kept.settings(),
        **cache.views_of(loader, processes=world),
    }
    live = Counting(made, precision)
    planned = cache.plan_cache(folder, identity, kept, loader=loader, teacher=live, parts=world)
    return Subject(made, loader, live, planned, views)


def train(
    made: Distiller, loader: Loader | cache.CachedLoader, *, epochs: int = VIEWS, accumulate: int = 1
) -> dict[str, Tensor]:
    """The trained student and terms."""
    torch.manual_seed(1)
    fit(made, loader, epochs=epochs, accumulate=accumulate, cpu=True)
    return made.student.state_dict(prefix="s.") | made.term_modules.state_dict(prefix="t.")


def small_shards(subject: Subject, batches: int) -> Subject:
    """The same with shards of so few batches, so that a view has several of them."""
    from dataclasses import replace

    card = subject.cache.card
    card = replace(card, layout=replace(card.layout, batches=batches))
    subject.cache = cache.Cache(subject.cache.folder, card, subject.cache.contents)
    return subject


def every_batch(subject: Subject) -> Iterator[Batch]:
    for view in range(subject.views):
        yield from subject.loader.stretch(view, range(subject.loader.steps_of_view))


if __name__ == "__main__":  # to be killed: shards of one batch; the folder, and which file that is synced is the last
    import itertools
    import os
    import signal
    import stat

    torch.set_num_threads(1)
    synced, calls, last = os.fsync, itertools.count(1), int(sys.argv[2])

    def kill(descriptor: int) -> None:
        """Die while a shard is written: it is on the disk, and not yet in its place."""
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)  # which follows each file, when it is in its place
        if not is_folder and next(calls) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        synced(descriptor)

    os.fsync = kill
    small_shards(subject(Path(sys.argv[1])), 1).fill()
