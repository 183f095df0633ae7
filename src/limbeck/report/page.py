"""From a view to one HTML file: no network, everything that comes from a run escaped, one known script or none."""

import base64
import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from limbeck.errors import UserError
from limbeck.report.chart import Chart

REPORT_FILE = "report.html"


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        id: Its anchor.
        title: Its heading.
        charts: Its figures.
        intro: A sentence above them.
        html: What else it shows, below.
    """

    id: str
    title: str
    charts: Sequence[Chart]
    intro: str = ""
    html: Markup | None = None


MakeSection = Callable[[str, str, Callable[[], Sequence[Chart] | Markup], str], Section]
"""From an anchor, a heading, what draws charts or HTML, and an intro; what cannot be drawn costs its section alone."""


def write_page(template: str, path: Path, view: Mapping[str, Any], *, slides: bool = False) -> Path:
    """Fill a template and put the page in place at once, so that a reader never sees half of it.

    Args:
        template: File name in ``templates/``.
        path: Where the page goes.
        view: What the template shows; a name that it asks for and does not get is an error.
        slides: Whether the page has sliders. Their script is the only one that a browser runs: the page's policy names
            its hash, and forbids every other script and all of the network.

    Returns:
        ``path``.

    Raises:
        UserError: If it cannot be written.
    """
    environment = _environment()
    script = source("slider.js") if slides else ""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    if script:
        policy += f"; script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
    text = environment.get_template(template).render(**view, policy=policy, script=Markup(script))
    unfinished = path.with_name(path.name + ".part")
    try:
        if path.exists() and not path.is_file():  # a pipe or a device is written to, and not replaced
            path.write_text(text, encoding="utf-8", newline="\n")
            return path
        unfinished.write_text(text, encoding="utf-8", newline="\n")  # a carriage return would change the script's hash
        os.replace(unfinished, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def distinct(sections: Sequence[Section]) -> list[Section]:
    """The same sections with figures that all have names of their own: terms may differ in what a name cannot show."""
    seen: set[str] = set()

    def named(chart: Chart) -> Chart:
        name, number = chart.id, 2
        while name in seen:
            name, number = f"{chart.id}-{number}", number + 1
        seen.add(name)
        return dataclasses.replace(chart, id=name)

    return [dataclasses.replace(section, charts=[named(chart) for chart in section.charts]) for section in sections]


def fill(template: Path, **view: Any) -> Markup:
    """A template's text filled, for the part of a page that a task adds; everything in ``view`` is escaped."""
    return Markup(_environment().from_string(template.read_text(encoding="utf-8")).render(**view))


def source(name: str) -> str:
    """The text of a file in ``templates/``."""
    loader = _environment().loader
    assert loader is not None
    return loader.get_source(_environment(), name)[0]


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("limbeck.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
