"""Read AnnData files, and name the one that is none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from img2gene._errors import Img2GeneError

if TYPE_CHECKING:
    from anndata import AnnData


def read_h5ad(path: Path) -> AnnData:
    """Read an AnnData from a file; a file that holds something else, or is damaged, is refused by name."""
    import anndata as ad

    try:
        return ad.read_h5ad(path)
    except (OSError, ValueError, KeyError) as error:
        raise Img2GeneError(f"{path} cannot be read as an AnnData ({error}).") from error
