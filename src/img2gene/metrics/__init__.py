"""Scores of predictions, on plain arrays."""

from img2gene.metrics.classification import auprc, auroc, dice
from img2gene.metrics.regression import mae, mse, pearson, r2, spearman
from img2gene.metrics.spatial import morans_i, neighbor_graph

__all__ = ["auprc", "auroc", "dice", "mae", "morans_i", "mse", "neighbor_graph", "pearson", "r2", "spearman"]
