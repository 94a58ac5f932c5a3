"""What the source imports is declared, and what is declared is used."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Packages that pandas imports when one of its functions is called: the call that shows it.
THROUGH_PANDAS = {"pyarrow": ".to_parquet(", "tabulate": ".to_markdown("}


def names(requirements: list[str]) -> set[str]:
    return {normal(re.match(r"[A-Za-z0-9_.-]+", item).group()) for item in requirements}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


DECLARED = names(PROJECT["dependencies"])
OPTIONAL = set().union(*(names(items) for items in PROJECT["optional-dependencies"].values()))


@cache
def sources() -> dict[Path, str]:
    return {path: path.read_text() for path in (ROOT / "src").rglob("*.py")}


@cache
def imported() -> dict[str, set[str]]:
    """For each package that is imported, the files that do; those of the standard library are left out."""
    found: dict[str, set[str]] = {}
    for path, text in sources().items():
        for node in ast.walk(ast.parse(text)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for module in modules:
                found.setdefault(module.split(".")[0], set()).add(path.name)
    own = {*sys.stdlib_module_names, "img2gene"}
    return {name: files for name, files in found.items() if name not in own}


def distributions(module: str) -> set[str]:
    """Packages that hold a module; one that is not installed is called like its module."""
    return {normal(name) for name in installed().get(module, [module])}


@cache
def installed() -> dict[str, list[str]]:
    return dict(packages_distributions())


def test_every_import_is_declared():
    absent = {m: files for m, files in imported().items() if not distributions(m) & (DECLARED | OPTIONAL)}
    assert not absent


def test_every_declared_package_is_imported_or_called_through_pandas():
    used = set().union(*(distributions(module) for module in imported()))
    used |= {name for name, call in THROUGH_PANDAS.items() if any(call in text for text in sources().values())}
    assert used >= DECLARED


def test_every_declared_package_has_a_lower_bound():
    assert not [item for item in PROJECT["dependencies"] if ">=" not in item]


@pytest.mark.parametrize("requirement", PROJECT["dependencies"])
def test_the_installed_release_is_not_below_its_bound(requirement):
    name, bound = re.match(r"([A-Za-z0-9_.-]+)>=([0-9.]+)", requirement).groups()
    try:
        found = version(name)
    except PackageNotFoundError:
        pytest.fail(f"{name} is not installed")
    numbers = [tuple(int(part) for part in re.findall(r"\d+", text)[:3]) for text in (found, bound)]
    assert numbers[0] >= numbers[1]


def test_each_supported_python_is_a_classifier_and_has_a_target():
    makefile = (ROOT / "Makefile").read_text()
    pythons = [item.split(" :: ")[-1] for item in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", item)]
    assert pythons[0] == PROJECT["requires-python"].removeprefix(">=")
    targets = re.search(r"^test-matrix: (.*?)  ##", makefile, flags=re.MULTILINE).group(1).split()
    assert targets == [f"test-{python}" for python in pythons]
