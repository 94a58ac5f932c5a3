"""Test your own models and encoders against the contracts of the package."""

from img2gene.testing.encoders import check_encoder
from img2gene.testing.models import assert_models_equal, check_predictor

__all__ = ["assert_models_equal", "check_encoder", "check_predictor"]
