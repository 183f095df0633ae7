"""What tables and figures take from the probes of their runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from limbeck.logs.records import Record, mapping, number, numbers
from limbeck.storage.untrusted import records_of
from limbeck.studies.tables import Curve

Points = Sequence[tuple[float, float]]


def probes_of(place: Path) -> list[Record]:
    """The probes of a run, in their order."""
    log = (place / "log.jsonl").read_text(encoding="utf-8")
    return [record for _, record in records_of(log) if record.get("kind") == "probe"]


def at_the_end(probes: Sequence[Record], path: str) -> float | None:
    """The number at a path of the last probe, or the mean of those below it; None where there is none.

    Example:
        >>> at_the_end([{"fit": {"a": 1.0, "b": 2.0}}], "fit"), at_the_end([{"fit": {"a": 1.0}}], "fit.a")
        (1.5, 1.0)
    """
    if not probes:
        return None
    keys = path.split(".")
    if (value := number(probes[-1], *keys)) is not None:
        return value
    values = [each for each in mapping(probes[-1], *keys).values() if isinstance(each, float)]
    return sum(values) / len(values) if values else None


def points_of(runs: Mapping[int, Sequence[Record]], curve: Curve) -> tuple[Points, Points]:
    """A curve at the end of some runs and at their start, the mean over them; over the steps there is one alone.

    Example:
        >>> points_of({0: [{"step": 0, "c": 1.0}, {"step": 4, "c": 0.5}]}, Curve("Correlation", "c"))
        ([(0.0, 1.0), (4.0, 0.5)], [])
    """
    if not curve.x:
        return _over_steps(runs, curve), []
    return _listed(runs, curve, -1), _listed(runs, curve, 0)


def _over_steps(runs: Mapping[int, Sequence[Record]], curve: Curve) -> Points:
    """At the steps at which all runs were looked at."""
    keys = curve.y.split(".")
    looks = [
        {int(probe["step"]): value for probe in probes if (value := number(probe, *keys)) is not None}
        for probes in runs.values()
    ]
    shared = sorted(set.intersection(*(set(each) for each in looks))) if looks else []
    return [(float(step), _mean([each[step] for each in looks])) for step in shared]


def _listed(runs: Mapping[int, Sequence[Record]], curve: Curve, at: int) -> Points:
    probes = [each[at] for each in runs.values() if each]
    columns = [numbers(probe, *curve.y.split(".")) for probe in probes]
    places = [numbers(probe, *curve.x.split(".")) for probe in probes]
    if not probes or any(each != places[0] for each in places) or any(len(c) != len(places[0]) for c in columns):
        return []
    return [(x, _mean(values)) for x, *values in zip(places[0], *columns, strict=True)]


def _mean(values: Sequence[float]) -> float:
    """With as many digits as a probe has."""
    return float(f"{sum(values) / len(values):.6g}")
