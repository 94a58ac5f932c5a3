"""Change JSON in every way that a damaged or foreign file could."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

Rng = np.random.Generator
Path = tuple[str | int, ...]
_DEEP = 3_000
REPLACEMENTS: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    3,
    0.5,
    1e308,
    2**70,
    float("nan"),
    float("inf"),
    "",
    "other",
    "\0",
    "é" * 50,
    [],
    [[]],
    [None],
    [1, 2, 3],
    ["a", "a"],
    {},
    {"a": 1},
    {"": None},
)


def change_json(text: str, rng: Rng) -> tuple[str, str, str]:
    """Change JSON text at random; return the text, the kind of change and its place."""
    change = _CHANGES[rng.integers(len(_CHANGES))]
    changed, detail = change(text, rng)
    return changed, f"json {change.__name__.strip('_').replace('_', ' ')}", detail


def _entries(value: Any, path: Path = ()) -> list[Path]:
    """List the paths of all entries."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(below for key, item in items for below in _entries(item, (*path, key)))]


def _parent(value: Any, path: Path) -> Any:
    for key in path[:-1]:
        value = value[key]
    return value


def _draw(value: Any, rng: Rng) -> Path:
    """Draw an entry: first its depth, then one of that depth, so that long lists do not take all draws."""
    paths = [path for path in _entries(value) if path]
    depths = sorted({len(path) for path in paths})
    depth = depths[rng.integers(len(depths))]
    alike = [path for path in paths if len(path) == depth]
    return alike[rng.integers(len(alike))]


def _replace_value(text: str, rng: Rng) -> tuple[str, str]:
    value = json.loads(text)
    path = _draw(value, rng)
    new = REPLACEMENTS[rng.integers(len(REPLACEMENTS))]
    _parent(value, path)[path[-1]] = new
    return json.dumps(value), f"{'.'.join(map(str, path))} = {new!r}"


def _replace_top_value(text: str, rng: Rng) -> tuple[str, str]:
    value = json.loads(text)
    key = sorted(value)[rng.integers(len(value))]
    value[key] = REPLACEMENTS[rng.integers(len(REPLACEMENTS))]
    return json.dumps(value), f"{key} = {value[key]!r}"


def _replace_all(text: str, rng: Rng) -> tuple[str, str]:
    new = REPLACEMENTS[rng.integers(len(REPLACEMENTS))]
    return json.dumps(new), repr(new)


def _remove_entry(text: str, rng: Rng) -> tuple[str, str]:
    value = json.loads(text)
    path = _draw(value, rng)
    del _parent(value, path)[path[-1]]
    return json.dumps(value), ".".join(map(str, path))


def _add_entry(text: str, rng: Rng) -> tuple[str, str]:
    value = json.loads(text)
    path = _draw(value, rng)
    parent = _parent(value, path)
    new = REPLACEMENTS[rng.integers(len(REPLACEMENTS))]
    if isinstance(parent, dict):
        parent["surplus"] = new
    else:
        parent.append(new)
    return json.dumps(value), f"{'.'.join(map(str, path[:-1]))} + {new!r}"


def _shuffle_list(text: str, rng: Rng) -> tuple[str, str]:
    value = json.loads(text)
    paths = [path for path in _entries(value) if path and isinstance(_parent(value, path), list)]
    if not paths:
        return _replace_value(text, rng)
    path = paths[rng.integers(len(paths))]
    _parent(value, path).reverse()
    return json.dumps(value), ".".join(map(str, path[:-1]))


def _nest(text: str, rng: Rng) -> tuple[str, str]:
    value = json.loads(text)
    key = sorted(value)[rng.integers(len(value))]
    value[key] = "MARK"
    opening, closing = (("[", "]"), ('{"a":', "}"))[rng.integers(2)]
    nested = opening * _DEEP + "1" + closing * _DEEP
    return json.dumps(value).replace('"MARK"', nested), key


def _cut(text: str, rng: Rng) -> tuple[str, str]:
    length = int(rng.integers(len(text)))
    return text[:length], f"first {length} characters"


def _change_character(text: str, rng: Rng) -> tuple[str, str]:
    place, new = int(rng.integers(len(text))), chr(int(rng.integers(32, 127)))
    return text[:place] + new + text[place + 1 :], f"{new!r} at {place}"


def _change_digit(text: str, rng: Rng) -> tuple[str, str]:
    places = [place for place, letter in enumerate(text) if letter.isdigit()]
    place = places[rng.integers(len(places))]
    new = "9999999999999999999999" if rng.integers(2) else str(rng.integers(10))
    return text[:place] + new + text[place + 1 :], f"{new} at {place}"


_CHANGES: tuple[Callable[[str, Rng], tuple[str, str]], ...] = (
    _replace_value,
    _replace_top_value,
    _replace_all,
    _remove_entry,
    _add_entry,
    _shuffle_list,
    _nest,
    _cut,
    _change_character,
    _change_digit,
)
