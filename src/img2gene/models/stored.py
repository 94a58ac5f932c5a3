"""Checks of stored models: digests of configuration and arrays, and the values that a configuration may hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from img2gene._checks import Arguments, shown
from img2gene._errors import Img2GeneError, listing
from img2gene._files.folders import fingerprint

# Damaged configurations and arrays raise these in the constructors of models and in torch.
_FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
_PLAIN = (str, bool, int, float, type(None))


def as_json(value: Any, name: str, *, undefined: bool = False) -> Any:
    """Convert a value to what JSON gives back: numpy scalars and arrays to numbers and lists, tuples to lists.

    Parameters
    ----------
    value
        A value of a configuration.
    name
        Name of the value in messages.
    undefined
        Store NaN and infinity as None; otherwise they are refused.

    Raises
    ------
    Img2GeneError
        JSON cannot hold the value: the message names the entry.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.models.stored import as_json
    >>> as_json({"k": np.int64(5), "shares": (0.5, 1)}, "settings")
    {'k': 5, 'shares': [0.5, 1]}
    """
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        keys = [key for key in value if not isinstance(key, str)]
        if keys:
            raise Img2GeneError(f"`{name}` cannot be stored: the key {keys[0]!r} is not a string.")
        return {str(key): as_json(item, f"{name}.{key}", undefined=undefined) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item, f"{name}[{i}]", undefined=undefined) for i, item in enumerate(value)]
    if isinstance(value, float) and not np.isfinite(value):
        if undefined:
            return None
        raise Img2GeneError(f"`{name}` cannot be stored: {value} is not finite.")
    if not isinstance(value, _PLAIN):
        raise Img2GeneError(f"`{name}` cannot be stored: {type(value).__name__} has no form in JSON.")
    return value


def parse_json(text: str, source: str) -> Any:
    """Read JSON; raise an :class:`Img2GeneError` that names ``source`` for text that is cut, too deep or not JSON."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError, TypeError) as error:
        raise Img2GeneError(f"{source} is damaged: its configuration is no JSON ({_reason(error)}).") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def digests(config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Compute the digests of a configuration and of each array."""
    facts = {name: value for name, value in config.items() if name != "digest"}
    text = json.dumps(facts, sort_keys=True, allow_nan=False)
    return {"config": hashlib.sha256(text.encode()).hexdigest(), "arrays": fingerprint(**arrays)}


def check_config_digest(config: Mapping[str, Any]) -> None:
    """Refuse a configuration that is not as it was stored."""
    stored = config.get("digest")
    if not (isinstance(stored, dict) and stored.keys() == {"config", "arrays"} and isinstance(stored["arrays"], dict)):
        raise Img2GeneError("Its digest is missing or damaged.")
    if stored["config"] != digests(config, {})["config"]:
        raise Img2GeneError("Its configuration is not as it was stored: the digest differs.")


def check_array_digests(config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse arrays that are not as they were stored, by name."""
    stored, current = config["digest"]["arrays"], fingerprint(**arrays)
    changed = [name for name in sorted({*stored, *current}) if stored.get(name) != current.get(name)]
    if changed:
        raise Img2GeneError(f"Its arrays {listing(changed)} are not as they were stored: the digest differs.")


def form_problems(
    declared: Mapping[str, tuple[str | int, ...]],
    types: Mapping[str, str],
    arrays: Mapping[str, np.ndarray],
    sizes: Mapping[str, int],
) -> list[str]:
    """Compare names, types, shapes and finiteness of arrays with what is declared.

    Parameters
    ----------
    declared
        Axes of each array: sizes, or names for sizes that several arrays share. Statistics of genes need none.
    types
        Type of each array, such as ``"float32"``; an empty string allows any number.
    arrays
        The stored arrays.
    sizes
        Sizes of named axes that are known.
    """
    known = dict(sizes)
    undeclared = [name for name in arrays if name not in declared]
    per_gene = [name for name in undeclared if name.startswith("statistics.")]
    problems = [f"Array `{_short(name)}` is missing." for name in declared if name not in arrays]
    problems += [f"Array `{_short(name)}` is not part of this model." for name in undeclared if name not in per_gene]
    axes_of = {name: axes for name, axes in declared.items() if name in arrays} | dict.fromkeys(per_gene, ("genes",))
    for name, axes in axes_of.items():
        values = arrays[name]
        expected = tuple(
            axis if isinstance(axis, int) else known.setdefault(axis, values.shape[i] if i < values.ndim else -1)
            for i, axis in enumerate(axes)
        )
        if values.shape != expected:
            problems.append(f"Array `{_short(name)}` has shape {values.shape}, expected {expected}{_axes(axes)}.")
        else:
            problems += _value_problems(_short(name), values, types.get(name, ""))
    return problems


def _axes(axes: Iterable[str | int]) -> str:
    """Name the axes of an array, if any has a name."""
    names = [str(axis) for axis in axes]
    return "" if all(name.isdecimal() for name in names) else f" ({', '.join(names)})"


def _short(name: str) -> str:
    return name.removeprefix("predictor.")


def _value_problems(name: str, values: np.ndarray, dtype: str) -> list[str]:
    if (values.dtype.name != dtype) if dtype else (values.dtype.kind not in "fiu"):
        return [f"Array `{name}` holds {values.dtype.name}, expected {dtype or 'numbers'}."]
    # A statistic of a gene may be undefined.
    finite = name.startswith("statistics.") or np.isfinite(values).all()
    return [] if finite else [f"Array `{name}` holds NaN or infinite values."]


@contextmanager
def damage(statement: str) -> Iterator[None]:
    """Raise what goes wrong in the block as an :class:`Img2GeneError` that starts with a statement about the model."""
    try:
        yield
    except Img2GeneError as error:
        text = str(error)
        separator = "\n" if "\n" in text else " "
        raise type(error)(f"{statement}:{separator}{text}") from error
    except _FAULTS as error:
        raise Img2GeneError(f"{statement}: {_reason(error)}.") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyError):
        return f"the entry {error} is missing"
    return f"{type(error).__name__}: {str(error)[:200]}" if str(error) else type(error).__name__


class StoredConfig(Arguments):
    """Check the entries of a stored configuration; all problems are raised together."""

    def entries(self, name: str, value: Any, required: Iterable[str], optional: Iterable[str] = ()) -> bool:
        """Check that a value is an object with these entries, and return whether it is."""
        if not isinstance(value, dict):
            self._unless_none(name, value, "an object with entries")
            return False
        required, optional = list(required), list(optional)
        self.messages += [f"`{name}.{entry}` is missing." for entry in required if entry not in value]
        self.messages += [
            f"`{name}.{entry}` is not part of this model." for entry in value if entry not in (*required, *optional)
        ]
        return all(entry in value for entry in required)

    def record(self, name: str, value: Any) -> bool:
        """Check that a value is an object, and return whether it is."""
        if not isinstance(value, dict):
            self._unless_none(name, value, "an object with entries")
        return isinstance(value, dict)

    def record_of_sizes(self, name: str, value: Any) -> None:
        """Check that a value is an object whose entries are positive numbers."""
        for entry, number in value.items() if self.record(name, value) else ():
            self.number(f"{name}.{entry}", number, above=0)

    def list_of_names(self, name: str, value: Any) -> None:
        """Check a list of different names, which may be empty."""
        if not isinstance(value, list):
            self._unless_none(name, value, "a list of names")
        else:
            self.names(name, value, empty=True)

    def codes(self, name: str, values: np.ndarray, labels: Any) -> None:
        """Check that an array holds positions in a list of names."""
        self.list_of_names(name, labels)
        n = len(labels) if isinstance(labels, list) else 0
        if values.dtype.kind not in "iu" or (len(values) and not (0 <= values.min() and values.max() < n)):
            self.messages.append(f"Array `{name}` holds numbers that belong to none of its {n} names.")

    def positive(self, arrays: Mapping[str, np.ndarray], names: Iterable[str], *, zero: bool = False) -> None:
        """Check that arrays hold positive numbers; ``zero`` allows 0."""
        for name in names:
            lowest = float(arrays[name].min(initial=np.inf))
            if lowest < 0 or (lowest == 0 and not zero):
                self.messages.append(
                    f"Array `{name}` holds {'negative numbers' if zero else 'numbers that are not positive'}."
                )

    def same(self, name: str, value: Any, parameters: Any, entries: Mapping[str, str]) -> None:
        """Check that entries of an object repeat the parameters of the model; ``entries`` maps one to the other."""
        for entry, parameter in entries.items():
            expected = getattr(parameters, parameter)
            if isinstance(value[entry], bool) != isinstance(expected, bool) or value[entry] != expected:
                self.messages.append(
                    f"{name}.{entry}={shown(value[entry])} differs from {parameter}={shown(expected)} of the parameters."
                )


def plain_parameters(parameters: Any, known: Iterable[str], later: Iterable[str] = ()) -> dict[str, Any]:
    """Return the stored parameters of a network that still exist; others are refused by name.

    ``later`` names parameters that models of earlier versions lack.
    """
    check, known = StoredConfig(), list(known)
    # Older models name the library that searched their bank, and a folder of the computer that trained them.
    old = ("search", "checkpoint_dir")
    if check.record("parameters", parameters):
        # Older models were fitted without a preset, and some models have none.
        optional = (*old, "preset", *later)
        names = [name for name in known if name not in optional]
        check.entries("parameters", parameters, names, optional)
    check.raise_all()
    return {name: parameters[name] for name in known if name in parameters and name not in old}
