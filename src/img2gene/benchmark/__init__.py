"""Published protocols on their cohorts, from sections to one table: ``python -m img2gene.benchmark --help``."""

__all__: list[str] = []
