"""A flipped bit in a checkpoint or a cache: harmless, or found and named, and never a wrong number."""

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cache.subject import VIEWS, small_shards, subject
from limbeck import cache
from limbeck.cache.store import plan_cache
from limbeck.errors import UserError
from limbeck.storage.checkpoint import Checkpoints, Counters

CPU = torch.device("cpu")
FLIPS = 500  # of each kind


def flip(path: Path, rng: random.Random) -> bytes:
    """Flip a random bit; the bytes that were there."""
    before = path.read_bytes()
    at = rng.randrange(len(before))
    path.write_bytes(before[:at] + bytes([before[at] ^ 1 << rng.randrange(8)]) + before[at + 1 :])
    return before


def modules(value: float = 0.0) -> dict[str, nn.Module]:
    student = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    for parameter in student.parameters():
        nn.init.constant_(parameter, value)
    return {"student": student, "terms": nn.ModuleDict({"a": nn.Linear(3, 3)})}


def test_of_a_checkpoint(tmp_path: Path) -> None:
    """The newest of two is flipped: it comes back as it was written, or the one before it does, and is named."""
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        kept = modules(float(step))
        momentum = {"state": {0: {"momentum_buffer": torch.full((8, 4), float(step))}}, "param_groups": [{"lr": step}]}
        folder = checkpoints.save(kept, {"optimizer": momentum}, Counters(epoch=step, step=step), CPU)
    files = sorted(folder.iterdir())
    sizes = [path.stat().st_size for path in files]
    rng = random.Random(0)
    passed_over = 0
    for number in range(FLIPS):
        # By size, as a disk would have it, and half of the time any file.
        path = rng.choices(files, sizes)[0] if number % 2 else rng.choice(files)
        before = flip(path, rng)
        others = modules()
        loaded = checkpoints.load(others, CPU)
        assert loaded is not None
        trainer, counters = loaded
        step = counters.step
        expected = modules(float(step))
        assert all(
            torch.equal(value, expected["student"].state_dict()[name])
            for name, value in others["student"].state_dict().items()
        )
        assert torch.equal(trainer["optimizer"]["state"][0]["momentum_buffer"], torch.full((8, 4), float(step)))
        assert trainer["optimizer"]["param_groups"] == [{"lr": step}]
        assert counters == Counters(epoch=step, step=step)
        assert [line.partition(":")[0] for line in checkpoints.skipped] == (["step-000000002"] if step == 1 else [])
        passed_over += step == 1
        path.write_bytes(before)
    assert passed_over > 0.95 * FLIPS


def test_of_all_checkpoints(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    states = [checkpoints.save(modules(1.0), {}, Counters(step=step), CPU) for step in (1, 2)]
    for state in states:
        flip(state / "trainer.pt", random.Random(1))
    with pytest.raises(
        UserError, match=r"no checkpoint in .* can be read: step-000000002: trainer.pt .*; step-000000001"
    ) as raised:
        checkpoints.load(modules(), CPU)
    assert "\n" not in str(raised.value)


def test_of_a_cache(tmp_path: Path) -> None:
    """Card and shards; what is read of a flipped cache is what is read of the whole one, or one line that names it."""
    made = small_shards(subject(tmp_path / "c"), 2)
    made.fill()
    expected = everything(made.cache)
    files = sorted((tmp_path / "c").iterdir())
    rng = random.Random(0)
    found = 0
    for _ in range(FLIPS):
        path = rng.choice(files)
        before = flip(path, rng)
        problem = ""
        read = expected
        try:
            again = plan_cache(
                tmp_path / "c", made.cache.card.identity, made.cache.contents, loader=made.loader, teacher=made.teacher
            )
            assert again.missing(VIEWS) == []
            cache.verify(again, VIEWS)
            read = everything(again)
        except UserError as error:
            problem = str(error)
        assert read.keys() == expected.keys()
        assert all(torch.equal(read[name], expected[name]) for name in read)
        if problem:
            assert str(tmp_path / "c") in problem
            assert "\n" not in problem
            found += 1
        path.write_bytes(before)
    assert found > 0.95 * FLIPS


def everything(filled: cache.Cache) -> dict[str, Tensor]:
    """What the cache has for each image of each view, as training reads it."""
    index = torch.arange(filled.card.images)
    found: dict[str, Tensor] = {}
    for number in range(VIEWS):
        rows = filled.view(number).rows(index)
        captured = filled.unpack(rows)
        found |= {f"{number} pixels": rows["pixels"], f"{number} output": captured.output}
        found |= {f"{number} {tap}": x for tap, x in captured.features.items()}
    return found
