"""Models on plain arrays."""

from img2gene.models.base import Model, Predictor, TrainingData, UsesPathways
from img2gene.models.calibration import Calibration, Prediction
from img2gene.models.held_out import CrossFitted, HasMembers, HeldOut
from img2gene.models.registry import create, get, list, register
from img2gene.models.retrieval import Neighbors, ReferenceBank, Retrieves

__all__ = [
    "Calibration",
    "CrossFitted",
    "HasMembers",
    "HeldOut",
    "Model",
    "Neighbors",
    "Prediction",
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
