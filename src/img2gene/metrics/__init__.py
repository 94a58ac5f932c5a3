"""Scores of predictions, on plain arrays."""

from img2gene.metrics.classification import auprc, auroc, dice
from img2gene.metrics.comparison import mean_interval, signed_rank_pvalue
from img2gene.metrics.moments import pooled_pearson
from img2gene.metrics.raster import rasterize, ssim
from img2gene.metrics.regression import bias, mae, mse, nrmse, pearson, r2, slope, spearman
from img2gene.metrics.reliability import noise_ceiling, spearman_brown
from img2gene.metrics.spatial import moran_agreement, morans_i, neighbor_graph
from img2gene.metrics.structure import gene_correlation, structure_score
from img2gene.metrics.surrogates import spatial_correlation_test
from img2gene.metrics.uncertainty import coverage, error_correlation, interval_width

__all__ = [
    "auprc",
    "auroc",
    "bias",
    "coverage",
    "dice",
    "error_correlation",
    "gene_correlation",
    "interval_width",
    "mae",
    "mean_interval",
    "moran_agreement",
    "morans_i",
    "mse",
    "neighbor_graph",
    "noise_ceiling",
    "nrmse",
    "pearson",
    "pooled_pearson",
    "r2",
    "rasterize",
    "signed_rank_pvalue",
    "slope",
    "spatial_correlation_test",
    "spearman",
    "spearman_brown",
    "ssim",
    "structure_score",
]
