"""What holds for the tests and for the doctests in the source."""

import builtins
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def no_last_value() -> Iterator[None]:
    """Take back the last value of a doctest: it stays among the builtins, as ``_``, and tyro reads through those."""
    yield
    vars(builtins).pop("_", None)
