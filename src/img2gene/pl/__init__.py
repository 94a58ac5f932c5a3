"""Plots; every function returns the figure and does not change the data."""

from img2gene.pl.bias import bias
from img2gene.pl.calibration import calibration
from img2gene.pl.correlation import gene_correlation
from img2gene.pl.cross_validation import cross_validation
from img2gene.pl.learning_curve import learning_curve
from img2gene.pl.localization import localization
from img2gene.pl.measured_vs_predicted import measured_vs_predicted
from img2gene.pl.out_of_distribution import out_of_distribution
from img2gene.pl.patches import patches
from img2gene.pl.pathways import pathways
from img2gene.pl.predictability import predictability
from img2gene.pl.prediction import prediction
from img2gene.pl.retrieved import retrieved
from img2gene.pl.score_heatmap import score_heatmap
from img2gene.pl.scores import scores
from img2gene.pl.slide import slide
from img2gene.pl.training import training
from img2gene.pl.umap import umap

__all__ = [
    "bias",
    "calibration",
    "cross_validation",
    "gene_correlation",
    "learning_curve",
    "localization",
    "measured_vs_predicted",
    "out_of_distribution",
    "patches",
    "pathways",
    "predictability",
    "prediction",
    "retrieved",
    "score_heatmap",
    "scores",
    "slide",
    "training",
    "umap",
]
