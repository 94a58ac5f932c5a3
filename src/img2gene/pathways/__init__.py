"""Gene sets, their scores per spot, and their enrichment, on plain arrays."""

from img2gene.pathways.context import PathwayContext
from img2gene.pathways.enrichment import enrich, rank_genes, select_pathways
from img2gene.pathways.gene_sets import read_gene_sets
from img2gene.pathways.matching import match_gene_sets
from img2gene.pathways.scores import aucell, ssgsea, zscore

__all__ = [
    "PathwayContext",
    "aucell",
    "enrich",
    "match_gene_sets",
    "rank_genes",
    "read_gene_sets",
    "select_pathways",
    "ssgsea",
    "zscore",
]
