"""Models on plain arrays."""

from img2gene.models.base import Model, Predictor, TrainingData, UsesPathways
from img2gene.models.registry import create, get, list, register

__all__ = ["Model", "Predictor", "TrainingData", "UsesPathways", "create", "get", "list", "register"]
