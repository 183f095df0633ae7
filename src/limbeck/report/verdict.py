"""Verdicts on a run: what its records show to be wrong, what that usually means, and what to try.

Each rule reads what a probe and the checks before training wrote into ``log.jsonl``, and has a threshold that lies
between runs in which the fault was provoked on purpose and healthy ones (``benchmarks/faults.py``, docs/results.md).
A rule that lacks its figures says nothing. Nothing here needs torch.
"""

from collections.abc import Callable, Iterator, Sequence

from limbeck.errors import reason_of
from limbeck.logs.records import Record
from limbeck.report import input_rules, term_rules
from limbeck.report.evidence import Evidence, Verdict

__all__ = ["Verdict", "follows", "verdicts"]


def verdicts(records: Sequence[Record]) -> list[Verdict]:
    """What is wrong with a run, the worst for its result first; empty for a healthy one.

    Args:
        records: The lines of the run's ``log.jsonl``, parsed; those of an unfinished run give what can be said so far.

    Returns:
        Of each term at most one, the first of its rules that applies: what the later ones see mostly follows from it.

    Example:
        >>> verdicts([{"kind": "data", "val": 500, "leaked": 50}])[0].title
        'Validation images are among the training images'
    """
    run = evidence_of(records)
    found: list[Verdict] = []
    for rule in RULES:
        try:
            said = list(rule(run))
        except Exception as error:  # on a record that no run writes; the other rules still apply
            said = [_failed(rule.__name__.replace("_", " "), reason_of(error))]
        for verdict in said:
            if not verdict.term or all(verdict.term != earlier.term for earlier in found):
                found.append(verdict)
    return found


def follows(records: Sequence[Record]) -> str:
    """Of a run without labels that its student follows its teacher; empty if it does not, or it was not measured."""
    return term_rules.follows(evidence_of(records))


def evidence_of(records: Sequence[Record]) -> Evidence:
    """The records of a run, sorted."""
    kinds: dict[str, list[Record]] = {}
    for record in records:
        kinds.setdefault(str(record.get("kind")), []).append(record)
    return Evidence(
        tuple(kinds.get("probe", ())),
        kinds.get("data", [{}])[-1],
        kinds.get("inputs", [{}])[-1],
        kinds.get("start", [{}])[0],
    )


def _failed(rule: str, reason: str) -> Verdict:
    return Verdict(
        "rule-failed",
        f'The rule "{rule}" could not be applied',
        f"{reason}.",
        "The log holds something that the rule does not expect. The run itself may be sound.",
        "Report it with the run's log.jsonl; it is a bug in Limbeck.",
    )


RULES: tuple[Callable[[Evidence], Iterator[Verdict]], ...] = (
    input_rules.leaking_data,
    input_rules.conflicting_labels,
    input_rules.varying_teacher,
    input_rules.wrong_input_statistics,
    term_rules.overweight,
    term_rules.not_following,
    term_rules.collapsed_projector,
    term_rules.dead_channels,
    term_rules.passive_student,
    term_rules.underweight,
    term_rules.capacity_gap,
)
