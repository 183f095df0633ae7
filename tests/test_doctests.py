"""A doctest's last value does not stay among the builtins, where the command line stumbles over lists."""

import builtins
import sys


def test_a_value_is_shown_as_a_doctest_shows_it(capsys):
    sys.displayhook([1])
    assert vars(builtins)["_"] == [1]
    assert capsys.readouterr().out == "[1]\n"


def test_and_is_gone_in_the_next_test():
    assert "_" not in vars(builtins)
