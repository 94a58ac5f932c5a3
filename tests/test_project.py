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
SUBPACKAGES = [name for name in ig.__all__ if name not in ("__version__", "settings")]
PUBLIC = [(package, name) for package in SUBPACKAGES for name in importlib.import_module(f"img2gene.{package}").__all__]
HEAVY = {
    *("anndata", "dask", "matplotlib.pyplot", "onnxruntime", "pandas", "scanpy", "scipy", "skimage", "sklearn"),
    *("spatialdata", "squidpy", "torch", "xarray", "zarr"),
}
ARRAYS_ONLY = ("encoders", "metrics", "models")
FORBIDDEN_BELOW = (
    *("anndata", "matplotlib", "scanpy", "spatialdata", "squidpy"),
    *(f"img2gene.{package}" for package in SUBPACKAGES if package not in ARRAYS_ONLY),
)


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
    listed = {name for name in documented() if name.partition(".")[0] in SUBPACKAGES}
    assert listed == {f"{package}.{name}" for package, name in PUBLIC}


@pytest.mark.parametrize("package", SUBPACKAGES)
def test_every_subpackage_has_public_names_and_a_summary(package):
    module = importlib.import_module(f"img2gene.{package}")
    assert module.__all__ == sorted(module.__all__)
    assert module.__doc__


@pytest.mark.parametrize(("package", "name"), PUBLIC, ids=[".".join(pair) for pair in PUBLIC])
def test_public_name_has_a_docstring_with_an_example(package, name):
    text = inspect.getdoc(getattr(importlib.import_module(f"img2gene.{package}"), name))
    assert text
    assert re.search(r"^Examples\n-{8}$", text, flags=re.MULTILINE), f"img2gene.{package}.{name} has no Examples"
    assert ">>> " in text


@pytest.mark.parametrize(("package", "name"), PUBLIC, ids=[".".join(pair) for pair in PUBLIC])
def test_public_function_documents_all_of_its_parameters(package, name):
    found = getattr(importlib.import_module(f"img2gene.{package}"), name)
    text = inspect.getdoc(found) or ""
    section = re.search(r"^Parameters\n-{10}\n(.*?)(?=^\w[^\n]*\n-{3,}$|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    if inspect.isclass(found) or section is None:
        return
    headings = re.findall(r"^\S.*$", section.group(1), flags=re.MULTILINE)
    described = {part.strip().lstrip("*") for heading in headings for part in heading.split(",")}
    assert described == set(inspect.signature(found).parameters)


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
def test_models_encoders_and_metrics_know_arrays_only(path):
    wrong = {name for name in imported_modules(path) for package in FORBIDDEN_BELOW if is_within(name, package)}
    assert not wrong


@pytest.mark.parametrize("path", [SOURCE / name for name in ("_errors.py", "_schema.py")], ids=name_of)
def test_the_lowest_floor_imports_only_itself(path):
    own = {name for name in imported_modules(path) if is_within(name, "img2gene")}
    assert all(is_within(name, "img2gene._errors") for name in own)


@pytest.mark.parametrize("path", source_files(), ids=name_of)
def test_nothing_is_printed(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


def test_version_is_that_of_the_installed_package_and_of_the_citation():
    assert ig.__version__ == version("img2gene")
    assert f"version: {ig.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_dir_lists_the_public_names_and_an_unknown_one_raises():
    assert set(dir(ig)) == set(ig.__all__)
    with pytest.raises(AttributeError, match="no attribute 'transmogrify'"):
        _ = ig.transmogrify
