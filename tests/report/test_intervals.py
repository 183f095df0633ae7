"""Means with intervals and differences in pairs, against numpy and scipy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from limbeck.errors import UserError
from limbeck.report.intervals import Interval, holm, interval, paired, summarize


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
    ours = {i: v + 0.05 + 0.001 * i for i, v in enumerate(shared)}
    result = paired(ours, dict(enumerate(shared)))
    assert result is not None
    assert holm([result]) == [True]
    assert not interval(list(ours.values())).excludes_zero


@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=8).filter(lambda values: np.std(values) > 1e-3))
def test_p_is_that_of_students_test(values: list[float]) -> None:
    assert interval(values).p == pytest.approx(stats.ttest_1samp(values, 0.0).pvalue, rel=1e-6)


def test_what_is_no_evidence_has_no_p() -> None:
    flat = interval([0.85 - 0.8, 0.86 - 0.81, 0.87 - 0.82])
    assert flat.excludes_zero
    assert [each.p for each in (flat, interval([1.0, 1.1]), interval([1.0]))] == [None] * 3
    assert holm([flat, None]) == [False, False]


def test_holm_by_hand() -> None:
    """Of p = 0.001, 0.02, 0.03 at 5%: 0.001 < 0.05/3 and 0.02 < 0.05/2 and 0.03 < 0.05; of 0.02, 0.03, 0.04 none."""

    def of(p: float) -> Interval:
        t = float(stats.t.isf(p / 2, 4))
        return Interval(5, 1.0, math.sqrt(5) / t, 0.1, 1.9)

    assert of(0.02).p == pytest.approx(0.02)
    assert holm([of(0.03), of(0.001), of(0.02)]) == [True, True, True]
    assert holm([of(0.02), of(0.03), of(0.04)]) == [False, False, False]
    assert holm([of(0.001), of(0.03), of(0.04)]) == [True, False, False]


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
