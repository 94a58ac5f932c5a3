"""Train, predict, evaluate."""

from img2gene.tl._cross_validation.result import CrossValidation
from img2gene.tl.contributions import pathway_contributions
from img2gene.tl.correlation import GeneCorrelation, gene_correlation
from img2gene.tl.cross_validate import cross_validate
from img2gene.tl.evaluate import evaluate, summarize
from img2gene.tl.fit import fit
from img2gene.tl.leaks import check_leaks
from img2gene.tl.learning_curve import learning_curve
from img2gene.tl.localize import localize
from img2gene.tl.predict import predict
from img2gene.tl.predictability import predictability
from img2gene.tl.rasterize import rasterize_prediction
from img2gene.tl.retrieve import retrieve

__all__ = [
    "CrossValidation",
    "GeneCorrelation",
    "check_leaks",
    "cross_validate",
    "evaluate",
    "fit",
    "gene_correlation",
    "learning_curve",
    "localize",
    "pathway_contributions",
    "predict",
    "predictability",
    "rasterize_prediction",
    "retrieve",
    "summarize",
]
