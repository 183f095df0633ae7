"""The page of one run: what came out, what the rules make of it, how it got there, what it cost, how to do it again."""

import importlib
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from limbeck.errors import reason_of
from limbeck.logs.records import Record, mapping
from limbeck.recipes.values import TASKS
from limbeck.report import words
from limbeck.report.axes import MOST_POINTS
from limbeck.report.behavior import agreement_charts, balance_charts, equivariance_charts
from limbeck.report.chart import Chart, figure_id, term_names
from limbeck.report.curves import course_curves, main_curves, part_curves, reading_curves, run_metric
from limbeck.report.fitting import fit_charts
from limbeck.report.page import REPORT_FILE, MakeSection, Section, distinct, write_page
from limbeck.report.projector import dynamics_charts, similarity_charts
from limbeck.report.record import RunRecord, read_run
from limbeck.report.result import cost, epoch_table, figures, headline, image_lines, setting, status, title
from limbeck.report.samples import Sample, samples
from limbeck.report.slider import MOST_FRAMES
from limbeck.report.spectrum import spectrum_charts
from limbeck.report.verdict import Verdict, follows, verdicts

FINDING_ORDER = ("error", "warning", "note", "ok")


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the page of a run.

    The page needs no network. A run that still trains, or that was killed, gives a page of what it has and says
    so; of a training loop of one's own the folder need hold no more than a ``log.jsonl`` with records of the kinds
    "step", "epoch" and "probe".

    Args:
        run: The run folder.
        out: Where the page goes; None: ``report.html`` in the run folder.

    Returns:
        Where the page is.

    Raises:
        UserError: If the folder is missing or holds no run.
    """
    record = read_run(run)
    metric = run_metric(record)
    failed: list[str] = []
    sections = {section.id: section for section in distinct(run_sections(record, metric, failed.append))}
    drawn = {chart.id for section in sections.values() for chart in section.charts}
    if sections["s-parts"].charts:
        drawn.add("parts")
    shown = samples(record)
    if shown:
        drawn.add("samples")
    found = _verdicts(record)
    view: dict[str, Any] = {
        "title": title(record),
        "method": words.METHODS.get(str(record.recipe.get("method")), ""),
        "status": status(record),
        "headline": " ".join(said for said in (headline(record, metric), follows(record.log)) if said),
        "figures": figures(record, metric),
        "setting": setting(record),
        "verdicts": [(verdict, figure if figure in drawn else "") for verdict, figure in found],
        "no_verdict": _no_verdict(record),
        "sections": sections,
        "of_task": list(sections.values())[1 : list(sections).index("s-parts")],
        "learned": [sections[name] for name in LEARNED if sections[name].charts],
        "thinned": _thinned(record),
        "epochs": epoch_table(record, metric),
        "samples": shown,
        "cost": cost(record),
        "images": image_lines(record),
        "findings": sorted(record.findings, key=_finding_rank),
        "notes": [*record.notes, *failed],
        "recipe": [(name, _shown(value)) for name, value in record.recipe.items()],
        "recipe_text": record.recipe_text,
        "files": [(name, words.size(bytes_)) for name, bytes_ in record.files.items() if name != REPORT_FILE],
        "commands": _commands(record, run),
    }
    slides = any(chart.frames for section in sections.values() for chart in section.charts)
    return write_page("run.html.j2", out or run / REPORT_FILE, view, slides=slides)


LEARNED = ("s-spectrum", "s-dynamics", "s-fit", "s-similarity", "s-balance", "s-agreement", "s-equivariance")
"""The sections that are drawn from the probe's records, in their order on the page."""


def run_sections(record: RunRecord, metric: str, say: Callable[[str], None] | None = None) -> list[Section]:
    """All charts of a run, by the sections of its page; sections may be empty.

    With ``say`` an exception costs the figures of one section, and is told.
    """
    probes = record.probes
    names = term_names(probes)

    def of_terms(*charts: Any) -> list[Chart]:
        """The charts of every term; of several terms the titles say which."""
        return [
            chart
            for name in names
            for make in charts
            for chart in make(probes, name, f" · {name}" if len(names) > 1 else "")
        ]

    def section(anchor: str, heading: str, draw: Callable[[], Sequence[Chart] | Markup], intro: str = "") -> Section:
        try:
            found = draw()
            is_html = isinstance(found, Markup)
            return Section(anchor, heading, () if is_html else found, intro, found if is_html else None)
        except Exception as error:  # on a record that no run writes
            if say is None:
                raise
            say(f'warning: the figures of "{heading}" could not be drawn ({reason_of(error)})')
            return Section(anchor, heading, (), intro)

    measured = "Measured on training batches, in a form that does not depend on batch size and width."
    projectors = _projectors(probes, names)
    return [
        section("s-curves", "Curves", lambda: main_curves(record, metric)),
        *_of_task(record, section),
        section("s-parts", "Parts of the loss", lambda: part_curves(record), "As they are, before their weights."),
        section("s-spectrum", "Spectrum of the projector", lambda: of_terms(spectrum_charts), projectors),
        section("s-dynamics", "How the projector moves", lambda: of_terms(dynamics_charts)),
        section("s-fit", "Fit of the channels", lambda: of_terms(fit_charts)),
        section("s-similarity", "Decorrelation and similarity", lambda: of_terms(similarity_charts)),
        section("s-balance", "Balance of the loss", lambda: balance_charts(probes)),
        section("s-agreement", "Agreement and calibration", lambda: agreement_charts(probes)),
        section("s-equivariance", "Equivariance", lambda: equivariance_charts(probes)),
        section("s-readings", "Readings", lambda: reading_curves(record), measured),
        section("s-cost", "Cost", lambda: course_curves(record)),
    ]


def _of_task(record: RunRecord, section: MakeSection) -> list[Section]:
    """What the run's task adds to its page."""
    place = TASKS.get(str(record.recipe.get("task")))
    return importlib.import_module(place.page).sections(record, section) if place is not None and place.page else []


def run_charts(run: Path) -> list[Chart]:
    """All charts of a run's page, by name.

    Raises:
        UserError: If the folder is missing or holds no run.
    """
    record = read_run(run)
    return [chart for section in distinct(run_sections(record, run_metric(record))) for chart in section.charts]


def run_samples(run: Path) -> list[Sample]:
    """The images of a run's page on which student and teacher disagree."""
    return samples(read_run(run))


def _projectors(probes: Sequence[Record], names: Sequence[str]) -> str:
    """The projector of each term, in a sentence."""
    found: list[str] = []
    for name in names:
        last: Record = next((part for probe in reversed(probes) if (part := mapping(probe, "terms", name))), {})
        widths = last.get("widths")
        if isinstance(widths, list) and len(widths) == 2:  # pyright: ignore[reportUnknownArgumentType]
            kind = f"{last['projector']}, " if isinstance(last.get("projector"), str) else ""
            found.append(f"{name}: {kind}{widths[0]} channels to {widths[1]}")
    return "; ".join(found) + "." if found else ""


def _verdicts(record: RunRecord) -> list[tuple[Verdict, str]]:
    """The verdicts, each with the id of its figure: names of terms are free, those of figures are not."""
    return [(verdict, figure_id(verdict.figure)) for verdict in verdicts(record.log)] if record.log else []


def _no_verdict(record: RunRecord) -> str:
    if record.probes:
        return f"No problems found in the {len(record.probes)} probes of this run."
    return "No problems found, but this run recorded no probes: most rules had nothing to check."


def _thinned(record: RunRecord) -> str:
    """Says what was left out of the drawings."""
    parts: list[str] = []
    if len(record.probes) > MOST_FRAMES:
        parts.append(f"sliders have {MOST_FRAMES} of the {len(record.probes)} probes")
    if max(len(record.steps), len(record.epochs), len(record.probes)) > MOST_POINTS:
        parts.append(f"lines have at most {MOST_POINTS} points, each the mean of its neighbors")
    text = " and ".join(parts)
    return f"{text[:1].upper()}{text[1:]}; log.jsonl has everything." if text else ""


def _commands(record: RunRecord, run: Path) -> list[tuple[str, str]]:
    if not record.recipe:
        return []
    command = "limbeck train" if record.recipe.get("method") == "alone" else "limbeck distill"
    place = shown_path(run)
    again = f"{command} --recipe {shlex.quote(place + '/recipe.yaml')} --out NEW_FOLDER"
    if record.finished:
        return [("The same run again, and what differs", f"limbeck rerun {shlex.quote(place)}"), ("Its recipe", again)]
    return [("Go on with it", f"{command} --resume {shlex.quote(place)}"), ("Start it anew", again)]


def shown_path(path: Path) -> str:
    """A folder as it is called from here; its bare name where it lies elsewhere, since a page may be handed on."""
    try:
        return path.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path.resolve().name


def _finding_rank(finding: Record) -> int:
    level = finding.get("level")
    return FINDING_ORDER.index(level) if level in FINDING_ORDER else len(FINDING_ORDER)


def _shown(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
