"""Sphinx configuration: warnings are errors, every reference has to resolve, tutorials are executed."""

from __future__ import annotations

import os
import re
import sys
from importlib.metadata import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

HERE = Path(__file__).parent
REPOSITORY = HERE.parent
sys.path.insert(0, str(HERE / "_ext"))

facts = metadata("img2gene")
project = facts["Name"]
author = "img2gene developers"
copyright = f"2026, {author}"
version = release = facts["Version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
    "drawn_figures",
    "prose_returns",
]
bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "unsrt"
bibtex_reference_style = "author_year"
exclude_patterns = ["_build"]
html_static_path = ["_static"]
html_css_files = ["site.css"]
templates_path = ["_templates"]
nitpicky = True

html_theme = "sphinx_book_theme"
html_title = f"{project} {version}"
html_theme_options = {
    "repository_url": "https://github.com/img2gene/img2gene",
    "use_repository_button": True,
    "path_to_docs": "docs",
}

autosummary_generate = True
autodoc_member_order = "bysource"
napoleon_google_docstring = False
typehints_defaults = "comma"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Notebooks always run: a cache would keep their outputs when only the package changes.
nb_execution_mode = "force"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_execution_excludepatterns: list[str] = []
nb_merge_streams = True
# Warnings are shown where they occur, and a test of the built pages refuses them.
nb_output_stderr = "show"
# But for these two: squidpy passes docrep names that docrep does not know, whenever it is imported
# (https://github.com/scverse/squidpy/issues/1230).
os.environ["PYTHONWARNINGS"] = ",".join(
    f"ignore:'{name}' is not a valid key!:SyntaxWarning" for name in ("n_jobs", "show_progress_bar")
)

# Without its sections, a tutorial is shown unexecuted. Absolute, as the kernels run elsewhere.
real_data = os.environ.get("IMG2GENE_DATA")
for tutorial, study in {"her2st": "her2st", "visium": "lung_organoid_visium"}.items():
    if not (real_data and (Path(real_data) / study).is_dir()):
        nb_execution_excludepatterns.append(f"tutorials/{tutorial}*")
if real_data:
    os.environ["IMG2GENE_DATA"] = str(Path(real_data).resolve())

# The build must not need a network; only where the pages are published do types link to other projects.
if os.environ.get("READTHEDOCS") == "True":
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "pandas": ("https://pandas.pydata.org/docs", None),
        "anndata": ("https://anndata.readthedocs.io/en/stable", None),
        "spatialdata": ("https://spatialdata.scverse.org/en/stable", None),
    }

nitpick_ignore_regex = [
    (r"py:.*", rf"{package}\..*")
    for package in (
        "anndata",
        "collections",
        "dask",
        "geopandas",
        "matplotlib",
        "numpy",
        "os",
        "pandas",
        "pathlib",
        "scanpy",
        "scipy",
        "spatialdata",
        "squidpy",
        "torch",
        "typing",
        "xarray",
    )
    # `tuple[X, ...]` in annotations of class methods
] + [("py:data", "Ellipsis")]


def show_benchmarks(app: Sphinx, docname: str, source: list[str]) -> None:
    """Make the benchmarks' own README their page, if there is one; its links stay relative to it."""
    readme = REPOSITORY / "benchmarks" / "README.md"
    if docname == "benchmarks" and readme.is_file():
        app.env.note_dependency(str(readme))
        source[0] = re.sub(r"\]\((?![a-z]+:|#|/)", "](../benchmarks/", readme.read_text(encoding="utf-8"))


def setup(app: Sphinx) -> None:
    app.connect("source-read", show_benchmarks)
