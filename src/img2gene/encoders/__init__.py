"""Image encoders: arrays of patches to arrays of features."""

from img2gene.encoders.base import Encoder
from img2gene.encoders.registry import EncoderSpec, get, list, load, register

__all__ = ["Encoder", "EncoderSpec", "get", "list", "load", "register"]
