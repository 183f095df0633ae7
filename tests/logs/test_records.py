"""Reading of records: what is there comes back, whatever is missing or damaged is nothing, and never an exception."""

import json
import math
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.logs.records import LARGEST, mapping, number, numbers, records

RECORD: dict[str, Any] = {"val": {"top1": 0.5, "counts": [1, 2.5], "parts": [{"a": 1}, None, 3, {}]}, "step": 3}
NO_NUMBERS = (None, "1", True, False, [], {}, [1.0], math.nan, math.inf, -math.inf, 10**400, -LARGEST, LARGEST)
NO_MAPPINGS = (None, "val", 1, 0.5, True, [], [{"top1": 1}])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3),
    max_leaves=12,
)


def test_a_number_is_read_at_any_depth():
    assert number(RECORD, "step") == 3.0
    assert isinstance(number(RECORD, "step"), float)
    assert number(RECORD, "val", "top1") == 0.5
    assert number({"a": -0.0}, "a") == 0.0
    assert number({"a": {"b": {"c": 1e149}}}, "a", "b", "c") == 1e149


@pytest.mark.parametrize("value", NO_NUMBERS, ids=str)
def test_what_is_no_finite_number_is_none(value: Any):
    assert number({"a": value}, "a") is None
    assert number({"a": {"b": value}}, "a", "b") is None
    assert numbers({"a": [1.0, value]}, "a") == []  # a list of which a part is missing would be another list
    assert numbers({"a": value}, "a") == ([1.0] if value == [1.0] else [])


@pytest.mark.parametrize("value", NO_MAPPINGS, ids=str)
def test_below_what_is_no_mapping_there_is_nothing(value: Any):
    record = {"val": value}
    assert mapping(record, "val") == {}
    assert mapping(record, "val", "top1") == {}
    assert number(record, "val", "top1") is None
    assert numbers(record, "val", "top1") == []


def test_missing_keys_are_nothing():
    assert (mapping(RECORD, "no"), number(RECORD, "no"), numbers(RECORD, "no"), records(RECORD, "no")) == (
        {},
        None,
        [],
        (),
    )
    assert mapping(RECORD, "val", "no", "top1") == {}
    assert mapping(RECORD) == RECORD


def test_lists_of_numbers_and_of_records():
    assert numbers(RECORD, "val", "counts") == [1.0, 2.5]
    assert numbers({"a": []}, "a") == []
    assert records(RECORD["val"], "parts") == ({"a": 1}, {})
    for value in NO_MAPPINGS[:-1]:
        assert records({"a": value}, "a") == ()


@given(JSON, st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=4))
def test_whatever_json_gives_is_read_without_an_exception(value: Any, keys: list[str]):
    record = {"a": json.loads(json.dumps(value)), "b": value}
    found = number(record, *keys)
    assert found is None or (math.isfinite(found) and abs(found) < LARGEST)
    assert all(math.isfinite(item) for item in numbers(record, *keys))
    assert isinstance(mapping(record, *keys), dict)
    assert all(isinstance(item, dict) for item in records(record, keys[0]))
    # The slow way: key by key, as long as there is a mapping.
    inner: Any = record
    for key in keys:
        inner = inner[key] if isinstance(inner, dict) and key in inner else None
    assert mapping(record, *keys) == (inner if isinstance(inner, dict) else {}) or "nan" in repr(inner)
    is_number = type(inner) in (int, float) and math.isfinite(min(max(inner, -sys.maxsize), sys.maxsize))
    if is_number and abs(inner) < LARGEST:
        assert found == inner
    else:
        assert found is None


def test_the_largest_number_can_be_subtracted_from_its_opposite():
    """What is drawn is scaled by the difference of its ends, and squared at times."""
    below = math.nextafter(LARGEST, 0)
    assert number({"a": below}, "a") == below
    assert math.isfinite((below - -below) ** 2)
