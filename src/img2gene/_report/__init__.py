"""One page on what was predicted, how well, and how far to trust it."""

from img2gene._report.page import report

__all__ = ["report"]
