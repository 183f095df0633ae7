"""The widths that a projector can have."""

from collections.abc import Mapping

from limbeck.errors import UserError


def check_at_least_one(name: str, sizes: Mapping[str, int]) -> None:
    """Refuse widths, depths and counts of nothing."""
    for argument, size in sizes.items():
        if size < 1:
            raise UserError(f"{name}: {argument} is {size}; expected at least 1")
