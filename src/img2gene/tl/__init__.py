"""Train, predict, evaluate."""

from img2gene.tl.contributions import pathway_contributions
from img2gene.tl.evaluate import evaluate, summarize
from img2gene.tl.fit import fit
from img2gene.tl.localize import localize
from img2gene.tl.predict import predict

__all__ = ["evaluate", "fit", "localize", "pathway_contributions", "predict", "summarize"]
