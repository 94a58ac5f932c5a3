"""Models on plain arrays."""

from img2gene.models.data import TrainingData
from img2gene.models.model import Model
from img2gene.models.predictor import Predictor, UsesPathways
from img2gene.models.reference_bank import Neighbors, ReferenceBank, Retrieves
from img2gene.models.registry import create, get, list, register
from img2gene.models.uncertainty.calibration import Calibration, Prediction
from img2gene.models.uncertainty.held_out import CrossFitted, HasMembers, HeldOut

# No network is imported here: torch loads when a network is created.
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
