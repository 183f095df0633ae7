"""The arithmetic of docs/scale.md: bytes against real collectives, closed forms against simulations, real shards."""

import importlib
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import scale_worker
import spawned
from scale_worker import ROWS, STUDENT, TEACHER
from tiny import CLASSES

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """Both scripts as one runs them: from their folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield {name: importlib.import_module(name) for name in ("traffic", "scale")}
    for name in ("traffic", "scale"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def traffic(scripts: dict[str, ModuleType]) -> Any:
    return scripts["traffic"]


@pytest.fixture(scope="module")
def scale(scripts: dict[str, ModuleType]) -> Any:
    return scripts["scale"]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes counted."""
    return spawned.found_by(scale_worker.work, 2, tmp_path_factory.mktemp("two"))


# Messages of a term, and the form that it takes of itself on several processes.
PARTS: dict[str, tuple[str | None, Callable[[Any], Any]]] = {
    "alone": (None, lambda t: []),
    "moments": ("moments", lambda t: t.by_moments(STUDENT, TEACHER)),
    "moments, mse": ("moments", lambda t: t.by_moments(STUDENT, TEACHER)),
    "blocks, log_sum": ("chunked", lambda t: t.in_blocks(STUDENT, TEACHER)),
    "blocks, l1": ("chunked", lambda t: t.in_blocks(STUDENT, TEACHER, log_sum=False)),
    "direct": ("direct", lambda t: t.relation(ROWS, TEACHER, TEACHER, 2)),
    "norm in front": ("direct", lambda t: t.relation(ROWS, STUDENT, TEACHER, 2)),
    "relation": (None, lambda t: t.relation(ROWS, STUDENT, TEACHER, 2)),
    "logit": (None, lambda t: t.logits()),
    "logit, gathered": (None, lambda t: t.gathered_logits(ROWS, CLASSES, 2)),
}


@pytest.mark.processes
@pytest.mark.parametrize("name", PARTS)
def test_a_real_step_sends_the_bytes_of_the_formulas(two: list[dict[str, Any]], traffic: Any, name: str) -> None:
    """Gradients, no buffers, the task's rows, the guard's agreement, and what the term sends; to the byte."""
    form, messages = PARTS[name]
    for found in two:
        step = found[name]
        assert step["form"] == form
        assert step["parameters"] > 100
        assert step["buffers"] > 0
        shared = [*traffic.gradients(step["parameters"]), *traffic.task_loss(), *traffic.guard()]
        expected = traffic.bytes_of([*shared, *messages(traffic)])
        assert step["step"] == step["third"] == expected


def test_every_term_that_is_counted_has_a_formula() -> None:
    assert PARTS.keys() == scale_worker.TERMS.keys()


@pytest.mark.parametrize("count", [1, 2, 3, 8, 13])
def test_hop_by_hop_a_sum_takes_what_the_closed_form_says(traffic: Any, count: int) -> None:
    """And with one late process nobody ends before it has sent."""
    network = traffic.Network(count, rate=1e9, latency=1e-5)
    for size in (8, 10**6):
        for ends, closed in ((traffic.ring_ends, network.ring), (traffic.tree_ends, network.tree)):
            found = ends(np.zeros(count), size, network)
            assert found.max() == pytest.approx(closed(size))
            late = np.zeros(count)
            late[-1] = 3.0
            assert ends(late, size, network).min() >= 3.0 + (network.latency if count > 1 else 0.0) * (count > 2)


def test_a_ring_and_a_tree_by_hand(traffic: Any) -> None:
    """Four processes, 1 GB/s, 1 ms a hop, 4 MB: 6 hops of 1 MB; 2 levels up and down, and 4 MB twice."""
    network = traffic.Network(4, rate=1e9, latency=1e-3)
    assert network.ring(4_000_000) == pytest.approx(6 * (1e-3 + 1e-3))
    assert network.tree(4_000_000) == pytest.approx(4 * 1e-3 + 8e-3)
    gather = traffic.Message("all_gather", 1_000_000)
    assert network.seconds(gather) == pytest.approx(3 * (1e-3 + 1e-3))


@pytest.mark.parametrize("count", [2, 8, 64])
def test_a_simulated_step_without_noise_is_the_closed_form(traffic: Any, count: int) -> None:
    network = traffic.Network(count, rate=1e9, latency=1e-5)
    messages = [*traffic.by_moments(16, 32), *traffic.gathered_logits(8, 10, count), *traffic.gradients(10**7)]
    kinds = {message.kind for message in messages}
    assert kinds == {"all_reduce", "all_gather"}
    random = np.random.default_rng(0)
    found = traffic.simulate(messages, network, compute=0.1, spread=0.0, steps=3, random=random)
    assert found == pytest.approx(0.1 + traffic.seconds_of(messages, network), rel=1e-9)


@pytest.mark.long
def test_stragglers_cost_what_the_slowest_of_them_takes(traffic: Any) -> None:
    """With messages that take no time a step is the largest of p gamma draws; its mean by SciPy."""
    from scipy import integrate, stats

    count, spread = 16, 0.2
    network = traffic.Network(count, rate=1e15, latency=0.0)
    messages = traffic.by_moments(4, 4)
    random = np.random.default_rng(0)
    found = traffic.simulate(messages, network, compute=1.0, spread=spread, steps=2000, random=random)
    draw = stats.gamma(spread**-2, scale=spread**2)
    expected, _ = integrate.quad(lambda x: 1 - draw.cdf(x) ** count, 0, 10)
    assert expected > 1.3
    assert found == pytest.approx(expected, rel=0.01)


def test_gradients_hide_behind_the_backward_pass_but_for_the_last_bucket(traffic: Any) -> None:
    network = traffic.Network(8, rate=1e9, latency=0.0)
    messages = traffic.gradients(3 * traffic.BUCKET // 4)  # three buckets of 25 MiB
    each = network.seconds(messages[0])
    assert traffic.waiting(messages, network, backward=10.0) == pytest.approx(each)
    assert traffic.waiting(messages, network, backward=each / 2) == pytest.approx(2.5 * each)
    shown = traffic.by_moments(8, 8)
    both = traffic.waiting([*shown, *messages], network, backward=10.0)
    assert both == pytest.approx(each + traffic.seconds_of(shown, network))


@pytest.mark.parametrize(
    ("between", "checkpoint", "restart", "interval"), [(3600.0, 20.0, 60.0, 400.0), (100.0, 10.0, 30.0, 40.0)]
)
def test_lost_work_is_what_playing_it_gives(
    traffic: Any, between: float, checkpoint: float, restart: float, interval: float
) -> None:
    of = traffic.Failures(between, checkpoint, restart)
    found = of.simulate(interval, stretches=100_000, random=np.random.default_rng(0))
    assert of.stretch(interval) > 1.1
    assert found - 1 == pytest.approx(of.stretch(interval) - 1, rel=0.03)


def test_dalys_interval_is_the_best_and_youngs_is_near_it(traffic: Any) -> None:
    from scipy import optimize

    for between, checkpoint in ((50.7 * 3600, 5.0), (3600.0, 60.0)):
        of = traffic.Failures(between, checkpoint, 300.0)
        best = optimize.minimize_scalar(of.stretch, bounds=(checkpoint, between), method="bounded").x
        assert of.daly() == pytest.approx(best, rel=2e-3)
        assert of.young() == pytest.approx(best, rel=0.12)
        assert of.young() == pytest.approx(math.sqrt(2 * checkpoint * between))


def test_the_bytes_of_a_row_are_those_of_real_shards(scale: Any, tmp_path: Path) -> None:
    """Of every way to keep less, and the cache that is measured can be read by its own reader."""
    for number, kind in enumerate(scale.CONTENTS):
        contents, sizes = scale.contents_of(kind), {"classes": 50, "width": 24}
        made = scale.filled(tmp_path / str(number), contents, images=4000, batch=100, **sizes)
        row = scale.row_bytes(contents, **sizes)
        found = sum(path.stat().st_size for path in made.folder.glob("*.safetensors"))
        assert 0 <= found - 4000 * row < 1000 * made.card.layout.shards  # names and a checksum in front of each
        assert found == made.estimate(1)
        read = made.unpack(made.view(0).rows(torch.tensor([3999, 0, 7])))
        assert all(feature.shape == (3, 24) for feature in read.features.values())


def test_the_images_of_a_shard_are_those_that_the_cache_plans(scale: Any, tmp_path: Path) -> None:
    """By the real planner, for rows that fill a shard and for rows that are so small that the images do."""
    from cache.subject import subject

    keeps: tuple[dict[str, Any], ...] = ({}, {"output": False})
    for kept in keeps:
        made = subject(tmp_path / str(len(kept)), **kept)
        row = sum(spec.row_bytes for spec in (made.cache.card.specs | scale.EXTRA).values())
        layout = made.cache.card.layout
        assert scale.shard_rows(row, layout.batch_size) == layout.batches * layout.batch_size
    assert scale.shard_rows(4186, 256) == 7936
    assert scale.shard_rows(90, 256) == 8192
    assert scale.shard_rows(10**9, 256) == 256


@pytest.mark.parametrize("table", ["step", "stragglers", "failures", "storage", "reading", "memory", "measure"])
def test_each_table_is_printed(scale: Any, capsys: pytest.CaptureFixture[str], table: str) -> None:
    quick = ["--steps", "1", "--stretches", "100", "--measured", "256", "--seconds", "0.01"]
    scale.main([table, *quick])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(lines) > 4
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize("table", ["step", "failures", "storage", "reading", "memory"])
def test_the_tables_of_the_page_are_what_is_printed(scale: Any, capsys: pytest.CaptureFixture[str], table: str) -> None:
    scale.main([table])
    page = (BENCHMARKS.parent / "docs" / "scale.md").read_text(encoding="utf-8")
    assert f"python benchmarks/scale.py {table}\n```\n\n{capsys.readouterr().out.strip()}\n" in page


def test_numbers_are_written_for_people(scale: Any) -> None:
    numbers = [0, 12, 999.4, 1000, 1_234_000, 110e12, 4.19e15]
    assert [scale.words(x) for x in numbers] == ["0 B", "12 B", "999 B", "1 kB", "1.23 MB", "110 TB", "4.19 PB"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rate", "0"], "--rate is 0.0; expected more than 0"),
        (["--seed", "-1"], "--seed is -1; expected at least 0"),
        (["--measured", "100"], "--measured is 100; expected at least 256"),
    ],
)
def test_a_flag_that_makes_no_sense_is_one_line(
    scale: Any, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        scale.main(["step", *words])
    assert message in capsys.readouterr().err
