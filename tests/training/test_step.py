"""One step can be read in one sitting."""

from traced_step import STEP, functions_of_a_step


def test_a_plain_step_is_few_functions_in_few_files() -> None:
    files = functions_of_a_step()[STEP]
    assert sum(map(len, files.values())) <= 45, files
    assert len(files) <= 12, files
    names = set().union(*files.values())
    assert {"_Training.step", "Distiller.forward", "FeatureTerm.forward", "LogitTerm.__call__"} <= names  # it is traced
