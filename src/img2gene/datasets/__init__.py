"""Data sets: a synthetic cohort whose truth is known."""

from img2gene.datasets.synthetic import synthetic_cohort

__all__ = ["synthetic_cohort"]
