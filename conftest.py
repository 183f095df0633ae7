"""What holds for the tests and for the doctests in the source."""

import builtins
from collections.abc import Iterator

import hypothesis
import pytest

LONG = "takes minutes; run by `make faults`, or with --long"


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--long``: also what takes minutes."""
    parser.addoption("--long", action="store_true", help="run the tests that take minutes, too")


def pytest_configure(config: pytest.Config) -> None:
    """Draw the same examples in every run of the checks, and new ones with ``--long``."""
    hypothesis.settings.register_profile("seeded", derandomize=True)
    if not config.getoption("--long"):
        hypothesis.settings.load_profile("seeded")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what takes minutes, and say so."""
    if not config.getoption("--long"):
        for item in items:
            if item.get_closest_marker("long") is not None:
                item.add_marker(pytest.mark.skip(reason=LONG))


@pytest.fixture(autouse=True)
def no_last_value() -> Iterator[None]:
    """Take back the last value of a doctest: it stays among the builtins, as ``_``, and tyro reads through those."""
    yield
    vars(builtins).pop("_", None)
