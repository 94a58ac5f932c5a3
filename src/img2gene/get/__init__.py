"""Read what the package stored in an object."""

from img2gene.get._get import model, patches
from img2gene.get._pathways import pathways

__all__ = ["model", "patches", "pathways"]
