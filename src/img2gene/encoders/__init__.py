"""Image encoders: arrays of patches to arrays of features."""

from img2gene.encoders.base import Encoder, TokenEncoder
from img2gene.encoders.registry import EncoderSpec, get, list, load, register

__all__ = ["Encoder", "EncoderSpec", "TokenEncoder", "get", "list", "load", "register"]
