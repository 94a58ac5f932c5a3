"""The command ``img2gene``: paths in, a store or a file out; it only calls public functions."""

from img2gene._cli.app import main

__all__ = ["main"]
