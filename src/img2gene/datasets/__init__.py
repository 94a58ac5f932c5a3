"""Data sets: a synthetic cohort whose expression is known without noise."""

from img2gene.datasets.synthetic import synthetic_cohort

__all__ = ["synthetic_cohort"]
