"""Shared descriptions of parameters are filled into docstrings."""

import inspect
import subprocess
import sys

import pytest

from img2gene._docs import PARAMETERS, fill_parameters
from img2gene._errors import MissingKeyError

TEMPLATE = """Count the spots.

    Parameters
    ----------
    %(sdata_counts)s
    share
        At least 90 % of the spots.
    %(table_key_counts)s
    """


def documented(text):
    def function(sdata, share, table_key):
        return sdata, share, table_key

    function.__doc__ = text
    return function


def test_filled_text_is_indented_like_its_placeholder():
    function = fill_parameters(documented(TEMPLATE))
    assert inspect.getdoc(function).splitlines()[2:] == [
        "Parameters",
        "----------",
        "sdata",
        "    Study with raw counts.",
        "share",
        "    At least 90 % of the spots.",
        "table_key",
        "    Table with the counts.",
    ]


def test_placeholder_of_a_dedented_docstring_is_filled():
    """Python 3.13 removes the common indentation when it compiles a function."""
    function = fill_parameters(documented(inspect.cleandoc(TEMPLATE)))
    assert function.__doc__ == inspect.getdoc(fill_parameters(documented(TEMPLATE)))


def test_decorated_object_is_the_same_object():
    function = documented(TEMPLATE)
    assert fill_parameters(function) is function


def test_class_is_filled():
    @fill_parameters
    class Result:
        """Hold a result.

        Parameters
        ----------
        %(ax)s
        """

    assert inspect.getdoc(Result).splitlines()[-2:] == ["ax", "    Axes to draw on; by default new ones."]


def test_unknown_placeholder_raises_and_lists_the_texts():
    with pytest.raises(MissingKeyError, match="`table_kye` not found in `img2gene._docs.PARAMETERS`"):
        fill_parameters(documented("Count.\n\n    %(table_kye)s\n    "))


def test_object_without_docstring_is_left_alone():
    assert fill_parameters(documented(None)).__doc__ is None


def test_package_imports_without_docstrings():
    code = "import img2gene as ig; print(ig.pp.extract_patches.__doc__)"
    result = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout == "None\n", result.stderr


@pytest.mark.parametrize("key", PARAMETERS)
def test_text_is_one_entry_of_a_parameters_section(key):
    name, *description = PARAMETERS[key].splitlines()
    assert key == name or key.startswith(f"{name}_")
    assert description
    assert all(line.startswith("    ") and len(line) <= 116 for line in description)
