"""Read records, as JSON gives them, whose keys may be missing and whose values may be damaged."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard, cast

from limbeck.recipes.values import TASKS

COMPARISON_FILE = "comparison.json"
"""In the folder of a comparison: its plan and, at the end, its figures."""

Record = Mapping[str, Any]
"""One line of ``log.jsonl``, or a part of it."""

LARGEST = 1e150  # of a number that can be drawn: a difference of two must not overflow

HIGHER = tuple(place.headline for place in TASKS.values())
"""Metrics that a run is judged by, the higher the better; where none of them was measured it is the loss."""


def headline(figures: Iterable[str]) -> tuple[str, float]:
    """The metric that a run is judged by, out of those that were measured, and 1 where more is better, else -1.

    Example:
        >>> headline({"loss": 2.0, "top1": 0.5}), headline(["loss"])
        (('top1', 1.0), ('loss', -1.0))
    """
    measured = set(figures)
    name = next((name for name in HIGHER if name in measured), "loss")
    return name, 1.0 if name in HIGHER else -1.0


def is_share(metric: str) -> bool:
    """Whether a metric is from 0 to 1 and written in percent: accuracies and average precisions."""
    return metric.startswith(("top", "ap"))


def figure(metric: str, value: float) -> str:
    """A metric for people: accuracies and average precisions in percent.

    Example:
        >>> figure("top1", 0.5), figure("loss", 1.25)
        ('50.00%', '1.2500')
    """
    return f"{100 * value:.2f}%" if is_share(metric) else f"{value:.4f}"


def mapping(record: Record, *keys: str) -> Record:
    """The mapping below a path of keys; empty where there is none.

    Example:
        >>> mapping({"val": {"top1": 0.5}}, "val"), mapping({"val": None}, "val")
        ({'top1': 0.5}, {})
    """
    value: object = record
    for key in keys:
        value = cast(Record, value).get(key) if isinstance(value, dict) else None
    return cast(Record, value) if isinstance(value, dict) else {}


def number(record: Record, *keys: str) -> float | None:
    """The finite number below a path of keys; None where there is none.

    Example:
        >>> number({"val": {"top1": 0.5}}, "val", "top1"), number({"loss": float("nan")}, "loss")
        (0.5, None)
    """
    value = mapping(record, *keys[:-1]).get(keys[-1])
    return float(value) if _is_number(value) else None


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def numbers(record: Record, *keys: str) -> list[float]:
    """The list of finite numbers below a path of keys; empty where there is none, or where one of them is none.

    Example:
        >>> numbers({"fit": {"counts": [1, 2]}}, "fit", "counts"), numbers({"counts": [1, None]}, "counts")
        ([1.0, 2.0], [])
    """
    value = mapping(record, *keys[:-1]).get(keys[-1])
    if not isinstance(value, list):
        return []
    items = cast(list[object], value)
    return [float(item) for item in items if _is_number(item)] if all(map(_is_number, items)) else []


def records(record: Record, key: str) -> tuple[Record, ...]:
    """The mappings in the list below a key."""
    value = record.get(key)
    return (
        tuple(cast(Record, item) for item in cast(list[object], value) if isinstance(item, dict))
        if isinstance(value, list)
        else ()
    )
