"""The project itself: what is public is documented, layers import downwards only, importing is cheap."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import img2gene as ig

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "img2gene"
SUBPACKAGES = sorted(path.parent.name for path in SOURCE.glob("[!_]*/__init__.py"))
MODULES = {name: importlib.import_module(f"img2gene.{name}") for name in SUBPACKAGES}
PUBLIC = {f"{package}.{name}": getattr(module, name) for package, module in MODULES.items() for name in module.__all__}
TOP = {name for name in ig.__all__ if name not in ("__version__", "settings", *SUBPACKAGES)}
HEAVY = set(
    "anndata dask matplotlib.pyplot pandas scanpy scipy skimage sklearn spatialdata squidpy torch xarray".split()
)
ARRAYS_ONLY = ["encoders", "metrics", "models", "pathways"]
ABOVE_ARRAYS = {"anndata", "matplotlib", "scanpy", "spatialdata", "squidpy"} | {
    f"img2gene.{package}" for package in SUBPACKAGES if package not in ARRAYS_ONLY
}


def documented() -> set[str]:
    """Names that the autosummary tables of the API page list."""
    text = (ROOT / "docs" / "api.md").read_text()
    tables = re.findall(r"\.\. autosummary::\n(.*?)```", text, flags=re.DOTALL)
    return {line.strip() for table in tables for line in table.splitlines() if line.strip() and ":" not in line}


def imported_modules(path: Path) -> set[str]:
    """Absolute names of everything that a file imports, at whatever depth and for types only, too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def source_files(*packages: str) -> list[Path]:
    return sorted(file for package in packages or (".",) for file in (SOURCE / package).rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def test_api_page_lists_exactly_the_public_names():
    assert documented() == {*PUBLIC, *TOP}


def test_every_subpackage_is_reached_from_the_package():
    assert set(SUBPACKAGES) <= set(ig.__all__)
    assert all(getattr(ig, name) is module for name, module in MODULES.items())


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_subpackage_lists_its_names_in_order_and_says_what_it_is_for(module):
    assert module.__all__ == sorted(module.__all__)
    assert module.__doc__


@pytest.mark.parametrize("found", PUBLIC.values(), ids=PUBLIC)
def test_public_name_has_a_docstring_with_an_example(found):
    text = inspect.getdoc(found) or ""
    assert re.search(r"^Examples\n-{8}\n.*>>> ", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("found", PUBLIC.values(), ids=PUBLIC)
def test_documented_parameters_are_those_of_the_signature(found):
    text = inspect.getdoc(found) or ""
    section = re.search(r"^Parameters\n-{10}\n(.*?)(?=^\w[^\n]*\n-{3,}$|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    if section:
        headings = re.findall(r"^\S.*$", section.group(1), flags=re.MULTILINE)
        described = [part.strip().lstrip("*") for heading in headings for part in heading.split(",")]
        assert described == list(inspect.signature(found).parameters)


def test_importing_the_package_loads_no_heavy_library():
    code = f"import sys, img2gene; print(*sorted({HEAVY!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_settings_stay_the_object_whatever_is_imported():
    code = (
        "import img2gene as ig; before = ig.settings; ig.pp; import img2gene.settings; from img2gene import tl; "
        "assert ig.settings is before; assert type(ig.settings).__name__ == 'Settings'"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("path", source_files(*ARRAYS_ONLY), ids=name_of)
def test_packages_below_the_data_contract_know_arrays_only(path):
    wrong = {name for name in imported_modules(path) for package in ABOVE_ARRAYS if is_within(name, package)}
    assert not wrong


@pytest.mark.parametrize("path", [SOURCE / name for name in ("_errors.py", "_schema.py")], ids=name_of)
def test_the_lowest_floor_imports_only_itself(path):
    own = {name for name in imported_modules(path) if is_within(name, "img2gene")}
    assert all(is_within(name, "img2gene._errors") for name in own)


@pytest.mark.parametrize("path", [path for path in source_files() if path.name != "__main__.py"], ids=name_of)
def test_nothing_is_printed_but_by_commands(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


@pytest.mark.parametrize("path", sorted((ROOT / "tutorials").glob("*.md")), ids=lambda path: path.stem)
def test_tutorial_names_its_language_without_which_unexecuted_code_has_no_highlighting(path):
    header = path.read_text().split("---")[1]
    assert "\n  language: python\n" in header


def test_version_is_that_of_the_installed_package_and_of_the_citation():
    assert ig.__version__ == version("img2gene")
    assert f"version: {ig.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_dir_lists_the_public_names_and_an_unknown_one_raises():
    assert set(dir(ig)) == set(ig.__all__)
    with pytest.raises(AttributeError, match="no attribute 'transmogrify'"):
        _ = ig.transmogrify
