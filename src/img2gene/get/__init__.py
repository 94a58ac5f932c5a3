"""Read what the package stored in an object."""

from img2gene.get._get import model, patches

__all__ = ["model", "patches"]
