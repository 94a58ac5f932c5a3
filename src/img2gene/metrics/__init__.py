"""Scores of predictions, on plain arrays."""

from img2gene.metrics.classification import auprc, auroc, dice
from img2gene.metrics.moments import pooled_pearson
from img2gene.metrics.raster import rasterize, ssim
from img2gene.metrics.regression import mae, mse, nrmse, pearson, r2, spearman
from img2gene.metrics.spatial import moran_agreement, morans_i, neighbor_graph
from img2gene.metrics.structure import gene_correlation, structure_score
from img2gene.metrics.uncertainty import coverage, error_correlation, interval_width

__all__ = [
    "auprc",
    "auroc",
    "coverage",
    "dice",
    "error_correlation",
    "gene_correlation",
    "interval_width",
    "mae",
    "moran_agreement",
    "morans_i",
    "mse",
    "neighbor_graph",
    "nrmse",
    "pearson",
    "pooled_pearson",
    "r2",
    "rasterize",
    "spearman",
    "ssim",
    "structure_score",
]
