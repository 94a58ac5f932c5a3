"""Models on plain arrays."""

from img2gene.models.base import Model, Predictor, TrainingData, UsesPathways
from img2gene.models.registry import create, get, list, register
from img2gene.models.retrieval import Neighbors, ReferenceBank, Retrieves

__all__ = [
    "Model",
    "Neighbors",
    "Predictor",
    "ReferenceBank",
    "Retrieves",
    "TrainingData",
    "UsesPathways",
    "create",
    "get",
    "list",
    "register",
]
