"""From a view to one HTML file: no script, no network, everything that comes from a run escaped."""

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

REPORT_FILE = "report.html"


def write_page(template: str, path: Path, view: Mapping[str, Any]) -> Path:
    """Fill a template and put the page in place at once, so that a reader never sees half of it.

    Args:
        template: File name in ``templates/``.
        path: Where the page goes.
        view: What the template shows; a name that it asks for and does not get is an error.

    Returns:
        ``path``.
    """
    text = _environment().get_template(template).render(view)
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
    return path


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("limbeck.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
