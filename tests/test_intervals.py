"""Means with intervals and differences in pairs, against numpy and scipy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from limbeck.errors import UserError
from limbeck.intervals import interval, paired, summarize


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8))
def test_the_interval_is_students(values: list[float]) -> None:
    result = interval(values)
    sd = float(np.std(values, ddof=1))
    half = stats.t.ppf(0.975, len(values) - 1) * sd / math.sqrt(len(values))
    assert result.n == len(values)
    assert result.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert result.sd == pytest.approx(sd, abs=1e-9)
    assert result.low == pytest.approx(np.mean(values) - half, abs=1e-6)
    assert result.high == pytest.approx(np.mean(values) + half, abs=1e-6)


def test_the_interval_by_hand() -> None:
    # t(0.975, 2) = 4.302653 from a printed table; sd 1, n 3.
    result = interval([1.0, 2.0, 3.0])
    assert (result.mean, result.sd) == (2.0, 1.0)
    assert result.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)
    assert not result.excludes_zero
    assert interval([5.0, 5.1, 5.2]).excludes_zero
    assert interval([-5.0, -5.1, -5.2]).excludes_zero


def test_one_seed_has_no_interval_and_none_no_mean() -> None:
    result = interval([0.5])
    assert (result.n, result.mean, result.sd, result.low, result.high) == (1, 0.5, None, None, None)
    assert not result.excludes_zero
    with pytest.raises(UserError, match="at least one value"):
        interval([])


def test_pairs_are_of_the_same_seed() -> None:
    ours, theirs = {0: 0.9, 1: 0.7, 2: 0.8}, {2: 0.7, 0: 0.8, 7: 0.1}
    result = paired(ours, theirs)
    assert result is not None
    assert (result.n, result.mean) == (2, pytest.approx(0.1))
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_pairing_removes_what_seeds_share() -> None:
    shared = [0.1, 0.5, 0.9]
    result = paired({i: v + 0.05 for i, v in enumerate(shared)}, dict(enumerate(shared)))
    assert result is not None
    assert result.excludes_zero
    assert not interval([v + 0.05 for v in shared]).excludes_zero


def test_the_baseline_of_a_table_may_be_any_method() -> None:
    def runs(*values: float) -> dict[int, dict[str, object]]:
        return {
            seed: {"last": {"top1": value}, "best": {"top1": value}, "seconds": 1.0, "run": f"r{seed}"}
            for seed, value in enumerate(values)
        }

    first, second = summarize({"a": runs(0.5, 0.6), "b": runs(0.6, 0.8)}, "top1", "b")
    assert second["paired"] is None
    assert (first["paired"]["against"], first["paired"]["n"]) == ("b", 2)
    assert first["paired"]["mean"] == pytest.approx(-0.15)
