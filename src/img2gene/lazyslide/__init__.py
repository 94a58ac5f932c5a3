"""Exchange tiles, features and predictions with LazySlide."""

from img2gene.lazyslide.feature_predictor import FeaturePredictor, predictor
from img2gene.lazyslide.features import add_features
from img2gene.lazyslide.tiles import add_tiles, read_tiles

__all__ = ["FeaturePredictor", "add_features", "add_tiles", "predictor", "read_tiles"]
