"""The project itself: what is public is documented, layers import downwards only, importing is cheap."""

import ast
import importlib
import inspect
import json
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


def test_warnings_are_seen_where_no_logging_is_set_up_and_can_be_silenced():
    warn = "import logging, img2gene; {}; logging.getLogger('img2gene.tl.fit').warning('%d patients', 1)"
    silence = "logging.getLogger('img2gene').setLevel('ERROR')"
    seen, silenced = (
        subprocess.run([sys.executable, "-c", warn.format(more)], capture_output=True, text=True, check=True).stderr
        for more in ("pass", silence)
    )
    assert (seen, silenced) == ("1 patients\n", "")


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


def module_of(path: Path) -> str:
    """Dotted name of a source file; a package is named by its folder."""
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph() -> dict[str, set[str]]:
    """For each module the modules of the package that it imports, lazy and type-only imports included."""
    modules = {module_of(path): path for path in source_files()}

    def owner(name: str) -> str:
        while name not in modules:
            name = name.rpartition(".")[0]
        return name

    graph = {}
    for module, path in modules.items():
        names = {name for name in imported_modules(path) if is_within(name, "img2gene")}
        # `from img2gene import settings` names the module below the package, not the package itself.
        graph[module] = {owner(name) for name in names} - {module}
    return graph


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules that import each other in a loop."""

    def reachable(start: str) -> set[str]:
        seen, todo = set(), list(graph[start])
        while todo:
            module = todo.pop()
            if module not in seen:
                seen.add(module)
                todo += graph[module]
        return seen

    reach = {module: reachable(module) for module in graph}
    looped = {module for module in graph if module in reach[module]}
    return [{other for other in looped if other in reach[one] and one in reach[other]} for one in sorted(looped)]


# From the ground up; rooms on one line stand on one floor and do not import each other.
FLOORS = (
    ("_errors",),
    ("_checks",),
    ("_schema", "_files", "_docs", "_versions", "settings"),
    ("metrics", "encoders", "_cluster"),
    ("models",),
    ("pathways", "testing"),
    ("_study",),
    ("_leaks",),
    ("io",),
    ("datasets", "get", "lazyslide", "pp"),
    ("tl",),
    ("pl",),
    ("_report", "benchmark"),
    ("_cli",),
    ("__main__",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def test_every_room_has_its_floor():
    rooms = {path.stem for path in SOURCE.glob("*.py") if path.stem != "__init__"}
    rooms |= {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert rooms == set(FLOOR)


def test_nothing_imports_upward():
    climbs = [
        f"{module} -> {other}"
        for module, others in import_graph().items()
        for other in others
        if "img2gene" not in (module, other)
        and room_of(module) != room_of(other)
        and FLOOR[room_of(other)] >= FLOOR[room_of(module)]
    ]
    assert not climbs


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_no_modules_import_each_other_in_a_circle():
    assert circles(import_graph()) == []


def test_a_circle_is_seen():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}
    assert circles(graph) == [{"b", "c"}, {"b", "c"}]


def test_rooms_at_the_package_root_stay_few():
    assert len(list(SOURCE.glob("*.py"))) <= 8


@pytest.mark.parametrize("path", source_files(), ids=name_of)
def test_only_public_functions_take_a_table_key(path):
    """Everything private takes the study, which knows its table; only what opens a study makes it of a name."""
    tree = ast.parse(path.read_text())
    openers = ("img2gene._schema", "img2gene._study.study", "img2gene._study.entrance", "img2gene.pl._arguments")
    public = module_of(path) in openers
    takes = [
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and "table_key" in {arg.arg for arg in [*node.args.args, *node.args.kwonlyargs]}
    ]
    allowed = {getattr(value, "__name__", "") for value in [*PUBLIC.values(), ig.report]}
    assert public or not [name for name in takes if name not in allowed and name != "read"]


@pytest.mark.parametrize("path", source_files(), ids=name_of)
def test_functions_and_modules_stay_short(path):
    text = path.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            assert not body or body[-1].end_lineno - body[0].lineno < 40, node.name


@pytest.mark.parametrize("path", [path for path in source_files() if path.name != "__main__.py"], ids=name_of)
def test_nothing_is_printed_but_by_commands(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


@pytest.mark.parametrize("path", sorted((ROOT / "tutorials").glob("*")), ids=lambda path: path.name)
def test_tutorial_is_a_notebook_without_outputs(path):
    assert path.suffix == ".ipynb"
    notebook = json.loads(path.read_text())
    # Without a language, unexecuted code has no highlighting.
    assert notebook["metadata"]["kernelspec"] == {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert notebook["metadata"]["language_info"] == {"name": "python"}
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code
    assert not [cell["id"] for cell in code if cell["outputs"] or cell["execution_count"] is not None]
    assert notebook["cells"][0]["source"][0].startswith("# ")


def test_every_tutorial_is_led_to_from_what_people_have():
    page = (ROOT / "docs" / "guide" / "your_data.md").read_text()
    names = {path.stem for path in (ROOT / "tutorials").glob("*.ipynb")}
    assert set(re.findall(r"{doc}`/tutorials/(\w+)`", page)) == names


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "guide").glob("*.md")), ids=lambda path: path.stem)
def test_guide_has_a_figure(path):
    assert re.search(r"^```{image} |^(\w+ = )?(ig|sq)\.pl\.", path.read_text(), flags=re.MULTILINE)


def test_links_of_the_readme_work_from_the_package_index():
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert not [link for link in links if not link.startswith("https://")]
    repository = "https://(?:github.com/img2gene/img2gene/blob|raw.githubusercontent.com/img2gene/img2gene)/main/(.*)"
    files = [match.group(1) for match in map(re.compile(repository).fullmatch, links) if match]
    assert len(files) >= 4
    assert not [file for file in files if not (ROOT / file).exists()]
    pages = re.findall(r"\(https://img2gene.readthedocs.io/en/latest/(.*?)\.html", text)
    assert len(pages) >= 3
    assert not [page for page in pages if not (ROOT / "docs" / f"{page}.md").exists()]


def test_version_is_that_of_the_installed_package_and_of_the_citation():
    assert ig.__version__ == version("img2gene")
    for file in ("CITATION.cff", ".github/scverse-meta.yaml"):
        assert f"\nversion: {ig.__version__}\n" in (ROOT / file).read_text()
    assert f"\n## [{ig.__version__}] - 2" in (ROOT / "CHANGELOG.md").read_text()


def test_dir_lists_the_public_names_and_an_unknown_one_raises():
    assert set(dir(ig)) == set(ig.__all__)
    with pytest.raises(AttributeError, match="no attribute 'transmogrify'"):
        _ = ig.transmogrify
