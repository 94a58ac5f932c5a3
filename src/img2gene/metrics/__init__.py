"""Scores of predictions, on plain arrays."""

from img2gene.metrics.classification import auprc, auroc, dice
from img2gene.metrics.comparison import mean_interval, signed_rank_pvalue
from img2gene.metrics.regression import mae, mse, pearson, r2, spearman
from img2gene.metrics.reliability import noise_ceiling, spearman_brown
from img2gene.metrics.spatial import morans_i, neighbor_graph
from img2gene.metrics.structure import gene_correlation, structure_score
from img2gene.metrics.surrogates import spatial_correlation_test

__all__ = [
    "auprc",
    "auroc",
    "dice",
    "gene_correlation",
    "mae",
    "mean_interval",
    "morans_i",
    "mse",
    "neighbor_graph",
    "noise_ceiling",
    "pearson",
    "r2",
    "signed_rank_pvalue",
    "spatial_correlation_test",
    "spearman",
    "spearman_brown",
    "structure_score",
]
