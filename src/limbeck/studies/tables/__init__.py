"""The tables and figures of the paper that `limbeck reproduce` makes again: rows, what was printed, what is claimed.

"The paper" is Miles and Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024
(arXiv 2303.11098); tables have the numbers of the AAAI version. Printed figures are of single runs, in percent: top-1
or, of detectors, COCO's average precision.
"""

from collections.abc import Mapping

from limbeck.errors import UserError, did_you_mean
from limbeck.studies.tables.ablations import ABLATIONS
from limbeck.studies.tables.against_others import AGAINST_OTHERS
from limbeck.studies.tables.detection import DETECTION
from limbeck.studies.tables.figures import FIGURES
from limbeck.studies.tables.table import Changes, Claim, Curve, Scale, Table
from limbeck.studies.tables.transformers import TRANSFORMERS

__all__ = ["TABLES", "Changes", "Claim", "Curve", "Scale", "Table", "table"]

TABLES: Mapping[str, Table] = {**ABLATIONS, **AGAINST_OTHERS, **TRANSFORMERS, **DETECTION, **FIGURES}
"""Name to table: what ``limbeck reproduce`` knows."""


def table(name: str) -> Table:
    """The table of this name.

    Raises:
        UserError: There is none.

    Example:
        >>> table("alpha").source
        'table 3'
    """
    if name not in TABLES:
        raise UserError(f"no table {name!r}{did_you_mean(name, TABLES)}; `limbeck reproduce` lists them")
    return TABLES[name]
