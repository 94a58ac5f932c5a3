"""CMRCNet: contrastive learning and cross-modal mask reconstruction, with retrieval from a bank of training spots."""

from img2gene.models.cmrcnet.predictor import Bleep, CMRCNet

__all__ = ["Bleep", "CMRCNet"]
