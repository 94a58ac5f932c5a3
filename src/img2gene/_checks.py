"""Check arguments that several functions take; each check lists its problems, so that one error can name them all."""

from __future__ import annotations

import math
import os
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np

from img2gene._errors import Img2GeneError, Problems, listing

_WHOLE, _NUMBER = (int, np.integer), (int, float, np.number)
# Python counts `True` as an int, and numpy a time span.
_NO_NUMBER = (bool, np.bool_, np.complexfloating, np.timedelta64)
# Conversions of ragged lists, of torch tensors on a GPU and of huge integers raise these.
_NOT_AN_ARRAY = (TypeError, ValueError, RuntimeError, OverflowError)
# numpy's generators and Lightning accept no larger seed.
_LARGEST_SEED = 2**32 - 1
_REPR = reprlib.Repr()
# Python 3.11 takes no limits as arguments.
_REPR.maxstring = _REPR.maxother = 80


class Arguments(Problems):
    """Convert and check the arguments of one call, so that one error names all that cannot be used.

    Each method returns the converted value. A value that cannot be used is returned as it is, and :meth:`raise_all`
    then raises.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene._checks import Arguments
    >>> check = Arguments()
    >>> check.whole("k", np.int64(5), 1), check.number("level", "0.9", 0, 1)
    (5, '0.9')
    >>> check.messages
    ["level='0.9': expected a number from 0 to 1."]
    """

    def whole(
        self, name: str, value: Any, least: int | None = None, most: int | None = None, *, optional: bool = False
    ) -> Any:
        """Convert to int; ``optional`` allows None."""
        fits = isinstance(value, _WHOLE) and not isinstance(value, _NO_NUMBER)
        if fits and _within(int(value), least, most):
            return int(value)
        return self._unless_none(name, value, f"a whole number{_bounds(least, most)}", optional)

    def number(
        self,
        name: str,
        value: Any,
        least: float | None = None,
        most: float | None = None,
        *,
        above: float | None = None,
        optional: bool = False,
    ) -> Any:
        """Convert to a finite float; ``above`` is a bound that is not allowed itself."""
        finite = _finite(value)
        if finite is not None and _within(finite, least, most) and (above is None or finite > above):
            return finite
        bounds = _bounds(least, most) if above is None else f" above {above:g}"
        bounds += f" and at most {most:g}" if above is not None and most is not None else ""
        return self._unless_none(name, value, f"a number{bounds}", optional)

    def seed(self, name: str, value: Any) -> Any:
        """Convert a random seed to int."""
        return self.whole(name, value, 0, _LARGEST_SEED)

    def flag(self, name: str, value: Any) -> Any:
        """Convert to bool."""
        return bool(value) if isinstance(value, bool | np.bool_) else self._unless_none(name, value, "True or False")

    def choice(self, name: str, value: Any, options: Iterable[str], *, optional: bool = False) -> Any:
        """Check that a value is one of the options."""
        known = list(options)
        if isinstance(value, str) and value in known:
            return str(value)
        return self._unless_none(name, value, f"one of {listing(known, 20)}", optional)

    def text(self, name: str, value: Any, *, optional: bool = False) -> Any:
        """Check that a value is a string that is not empty."""
        if isinstance(value, str) and value:
            return str(value)
        return self._unless_none(name, value, "a name (a string that is not empty)", optional)

    def label(self, name: str, value: Any, *, optional: bool = False) -> Any:
        """Convert the name of a patient or section to text; whole numbers are names, too."""
        return self.text(name, name_text(value) if _is_whole_number(value) else value, optional=optional)

    def labels(self, name: str, value: Any) -> list[str] | None:
        """Convert the names of patients or sections to text, each once; None, which means all of them, is allowed.

        No name is allowed here, because the error about it lists the names that exist.
        """
        if value is None:
            return None
        items = [value] if _is_label(value) else several(value)
        if items is None or not all(map(_is_label, items)):
            self.messages.append(f"{name}={shown(value)}: expected a name, a list of names, or None.")
            return None
        return list(dict.fromkeys(map(name_text, items)))

    def names(self, name: str, value: Any, *, optional: bool = False, empty: bool = False) -> Any:
        """Convert one name or several to a list of names, each once; ``empty`` allows no name."""
        if isinstance(value, str) and value:
            return [str(value)]
        # An array without axes is iterable to Python, and cannot be iterated over.
        if (
            isinstance(value, Iterable)
            and not isinstance(value, str | bytes | Mapping)
            and getattr(value, "ndim", None) != 0
        ):
            names = list(value)
            if all(isinstance(item, str) and item for item in names) and (names or empty):
                self.distinct(name, names)
                return [str(item) for item in names]
        return self._unless_none(name, value, "a name or a list of names", optional)

    def distinct(self, name: str, values: Iterable[Any]) -> None:
        """Check that no value is listed twice."""
        repeated = [value for value, n in Counter(values).items() if n > 1]
        if repeated:
            self.messages.append(f"{name}: {listing(repeated)} listed more than once; list each once.")

    def path(self, name: str, value: Any, *, optional: bool = False) -> Any:
        """Convert to a path; text with a null character, or without an encoding, names no file."""
        if isinstance(value, str | os.PathLike) and _names_a_file(value):
            # `~name` of a user who does not exist stays as it is, as in a shell.
            return Path(os.fsdecode(os.path.expanduser(value)))
        return self._unless_none(name, value, "a path", optional)

    def device(self, name: str, value: Any, *, optional: bool = True) -> Any:
        """Check that torch knows a device and that this machine has it."""
        import torch

        try:
            device = torch.device(value) if isinstance(value, str | torch.device) else None
            if device is not None:
                torch.empty(0, device=device)
                return str(device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason, other = str(error).splitlines()[0], "None" if optional else '"auto"'
            self.messages.append(
                f'{name}={value!r}: this computer has no such device ({reason}). Use "cpu", or {other} to choose.'
            )
            return value
        return self._unless_none(name, value, 'a device such as "cpu" or "cuda:0"', optional)

    def _unless_none(self, name: str, value: Any, expected: str, optional: bool = False) -> Any:
        if not (optional and value is None):
            self.messages.append(f"{name}={shown(value)}: expected {expected}{', or None' if optional else ''}.")
        return value


def _names_a_file(value: str | os.PathLike[str]) -> bool:
    try:
        return bool(os.fspath(value)) and b"\0" not in os.fsencode(value)
    # Half of a surrogate pair, as in broken names, has no encoding.
    except (UnicodeEncodeError, TypeError):
        return False


def as_array(name: str, values: Any) -> np.ndarray:
    """Convert arrays, Series, tensors, lists and numbers to an array; refuse everything else by its type.

    Examples
    --------
    >>> from img2gene._checks import as_array
    >>> as_array("truth", [1, 2]).shape
    (2,)
    """
    # numpy reads other containers, such as an AnnData, entry by entry, which takes minutes.
    if not (hasattr(values, "__array__") or isinstance(values, list | tuple | range | str | bytes | Number)):
        raise Img2GeneError(f"{name}={shown(values)}: expected an array, got {type(values).__name__}.")
    try:
        return np.asarray(values)
    except _NOT_AN_ARRAY as error:
        raise Img2GeneError(f"{name}={shown(values)}: expected an array ({str(error)[:100]}).") from error


def shown(value: Any) -> str:
    """Show an argument in a message; long ones are cut."""
    # Also shows objects whose own `__repr__` fails; Python writes no int of more than 4,300 digits.
    try:
        return _REPR.repr(value)
    except ValueError:
        return f"a {type(value).__name__} that is too long to show"


def several(value: Any) -> list[Any] | None:
    """List the items of a list, an array or an index; None for a single value, a text and a dict."""
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
        return None
    try:
        return list(value)
    # An array without axes is iterable to Python, and cannot be iterated over.
    except TypeError:
        return None


def name_text(value: Any) -> str:
    """Write the name of a group as text, the same for 3 and 3.0.

    pandas turns whole numbers into floats where a value of the column is missing.

    Examples
    --------
    >>> from img2gene._checks import name_text
    >>> name_text(3.0), name_text(3.5), name_text("3.0")
    ('3', '3.5', '3.0')
    """
    return str(int(value) if _is_whole_number(value) else value)


def _is_label(value: Any) -> bool:
    return isinstance(value, str) or _finite(value) is not None


def _is_whole_number(value: Any) -> bool:
    number = _finite(value)
    return number is not None and number.is_integer()


def _finite(value: Any) -> float | None:
    """Convert to float; None for what is no finite number, such as NaN or an int that is too large."""
    if not isinstance(value, _NUMBER) or isinstance(value, _NO_NUMBER):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _within(value: Any, least: float | None, most: float | None) -> bool:
    return (least is None or value >= least) and (most is None or value <= most)


def _bounds(least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f" from {least:g} to {most:g}" if most < _LARGEST_SEED else f" from {least} to {most}"
    return "" if least is None and most is None else f", {least} or more" if most is None else f", {most} or less"


def whole_problems(name: str, value: Any, least: int, *, optional: bool = False) -> list[str]:
    """Check that an argument is a whole number and at least ``least``.

    Examples
    --------
    >>> from img2gene._checks import whole_problems
    >>> whole_problems("n_folds", 2.0, 2)
    ['n_folds=2.0: expected a whole number, 2 or more.']
    """
    # Python counts `True` as an int.
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if (optional and value is None) or (whole and value >= least):
        return []
    return [f"{name}={value!r}: expected {'' if whole else 'a whole number, '}{least} or more."]


def genes_problems(genes: object) -> list[str]:
    """Check that ``genes`` holds names, a number of genes, or None."""
    if genes is None or isinstance(genes, (int, np.integer, Iterable)):
        return []
    return [f"genes={genes!r}: expected names of genes, a whole number of them, or None."]


def jobs_problems(n_jobs: Any) -> list[str]:
    """Check that joblib accepts ``n_jobs``."""
    if isinstance(n_jobs, _WHOLE) and not isinstance(n_jobs, bool) and n_jobs != 0:
        return []
    return [f"n_jobs={n_jobs!r}: expected a number of processes, or -1 for one per core."]
