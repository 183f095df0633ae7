"""The harness: every loop gets its turns, makes the steps that it is told to, and ratios are taken round by round."""

import time

import pytest
import torch

from limbeck.benchmark.timing import WARM_UP, Clock, compare, interleave

CPU = torch.device("cpu")


def sleeping(seconds: float, made: list[str], name: str):
    def loop(steps: int, clock: Clock) -> None:
        for _ in range(steps):
            time.sleep(seconds)
            made.append(name)
            clock.tick()

    return loop


def test_a_loop_that_takes_three_times_as_long_has_a_ratio_of_three(monkeypatch: pytest.MonkeyPatch):
    made: list[str] = []
    loops = {"quick": sleeping(0.05, made, "quick"), "slow": sleeping(0.15, made, "slow")}
    monkeypatch.setattr("limbeck.benchmark.timing.CHUNK_SECONDS", 0.2)
    seconds = interleave(loops, rounds=2, device=CPU)
    found = compare(seconds, "quick")
    assert found["quick"].ratio == 1.0
    assert (
        2.0 < found["slow"].ratio < 4.0
    )  # sleep is never shorter than asked for, and a loaded machine makes it longer
    assert {name: len(values) for name, values in seconds.items()} == {"quick": 2, "slow": 2}


def test_another_loop_begins_in_each_round(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("limbeck.benchmark.timing.CHUNK_SECONDS", 0.07)
    made: list[str] = []
    interleave({name: sleeping(0.05, made, name) for name in "abc"}, rounds=1, device=CPU)
    turns = made[::2]  # a step of 0.05 s: each turn has one that warms up and one that counts
    assert made[1::2] == turns
    assert "".join(turns) == "abc" + "bca" + "cab" + "abc"
    assert len(turns) == 3 * (WARM_UP + 1)


def test_a_loop_that_makes_other_steps_than_it_is_told_to_is_found():
    def lazy(steps: int, clock: Clock) -> None:
        clock.tick()

    with pytest.raises(RuntimeError, match="made 1 steps, 2 were to be timed"):
        interleave({"lazy": lazy}, rounds=1, device=CPU)


def test_ratios_are_of_the_same_round():
    found = compare({"base": [1.0, 10.0, 1.0], "other": [2.0, 20.0, 2.0]}, "base")
    assert found["other"].ratio == found["other"].low == found["other"].high == 2.0
    assert found["other"].seconds == 2.0
