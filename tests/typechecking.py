"""The run-time type checker of the tests; pytest is pointed here by ``--jaxtyping-packages``."""

from beartype import BeartypeConf, beartype

# An int is a float here, as it is for pyright (PEP 484's numeric tower): alpha=4 is no fault.
shapes = beartype(conf=BeartypeConf(is_pep484_tower=True))
