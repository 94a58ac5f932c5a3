"""Record the releases of Python and of the packages that results depend on."""

from __future__ import annotations

import functools
import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = (
    "img2gene",
    "torch",
    "lightning",
    "anndata",
    "spatialdata",
    "numpy",
    "pandas",
    "scikit-learn",
    "scipy",
    "matplotlib",
)


def versions() -> dict[str, str]:
    """Return the release of each package and of Python, and the platform."""
    releases = {name: _version(name) for name in _PACKAGES}
    return releases | {"python": platform.python_version(), "platform": platform.platform()}


# Reading the metadata of ten packages takes a quarter of a second.
@functools.cache
def _version(name: str) -> str:
    """Return the installed release of a package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
