"""Other loggers behind one small interface, and what of a record goes to them."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

PASSED_ON = ("step", "epoch", "probe")
"""The kinds of records whose numbers go to the sinks; each has a step."""


@runtime_checkable
class Sink(Protocol):
    """Where numbers go besides the log file. TensorBoard's ``SummaryWriter`` is one as it is."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Write one number."""
        ...

    def add_histogram(self, tag: str, values: Float[Tensor, " n"], global_step: int) -> None:
        """Write numbers of which the distribution is of interest."""
        ...

    def flush(self) -> None:
        """Pass on what was added: a record is complete."""
        ...

    def close(self) -> None:
        """Finish writing."""
        ...


def pass_on(record: Mapping[str, Any], sink: Sink) -> None:
    """Give the numbers of a record of a step, an epoch or a probe to a sink; other records have none for it."""
    if record["kind"] not in PASSED_ON:
        return
    step = int(record["step"])
    for tag, value in scalars(record).items():
        sink.add_scalar(tag, value, step)
    for tag, values in histograms(record).items():
        sink.add_histogram(tag, values, step)
    sink.flush()


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record under their paths in it, which begin with its kind; lists have no place here.

    Example:
        >>> scalars({"kind": "step", "step": 20, "loss": 1.5, "parts": {"task": 1.0}})
        {'step/loss': 1.5, 'step/parts/task': 1.0}
        >>> scalars({"kind": "probe", "step": 20, "terms": {"feature": {"spectrum": {"norm": 2.0, "values": [1.0]}}}})
        {'probe/feature/spectrum/norm': 2.0}
    """
    rest = {name: value for name, value in record.items() if name not in ("kind", "step", "terms")}
    # A term's figures stand where a reader looks for them: below its own name.
    return dict(_numbers(record["kind"], {**rest, **record.get("terms", {})}))


def _numbers(path: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        below: Mapping[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
        for name, item in below.items():
            yield from _numbers(f"{path}/{name}", item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, float(value)


def histograms(record: Mapping[str, Any]) -> dict[str, Tensor]:
    """The distributions of a probe: singular values of each projector, and correlations of channel with channel.

    A spectrum is the values that the record has. Of the correlations it has counts: each is taken to be the middle of
    its bin, so that it is right to half of the bin's width.

    Example:
        >>> fit = {"histogram": {"edges": [0.0, 0.5, 1.0], "counts": [1, 2]}}
        >>> histograms({"kind": "probe", "step": 20, "terms": {"feature": {"fit": fit}}})
        {'probe/feature/correlation': tensor([0.2500, 0.7500, 0.7500])}
    """
    found: dict[str, Tensor] = {}
    for name, term in record.get("terms", {}).items():
        for key in ("spectrum", "spectrum_normalized"):
            found[f"probe/{name}/{key}"] = torch.tensor(term.get(key, {}).get("values", []))
        counted = term.get("fit", {}).get("histogram", {"edges": [0.0], "counts": []})
        edges, counts = torch.tensor(counted["edges"]), torch.tensor(counted["counts"], dtype=torch.long)
        found[f"probe/{name}/correlation"] = ((edges[1:] + edges[:-1]) / 2).repeat_interleave(counts)
    return {tag: values for tag, values in found.items() if len(values) > 0}
