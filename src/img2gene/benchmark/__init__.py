"""Run published protocols on their cohorts: ``python -m img2gene.benchmark --help``."""

__all__: list[str] = []
