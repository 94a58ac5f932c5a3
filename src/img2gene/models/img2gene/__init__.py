"""Img2Gene: three views of a spot, counterfactual debiasing, pathways as context, cross-modal coherence."""

from img2gene.models.img2gene.predictor import Img2Gene

__all__ = ["Img2Gene"]
