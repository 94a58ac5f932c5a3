"""Image encoders: arrays of patches to arrays of features."""

from img2gene.encoders.base import Encoder, TokenEncoder
from img2gene.encoders.registry import get, list, load, register
from img2gene.encoders.spec import EncoderSpec
from img2gene.encoders.wrapping import wrap

__all__ = ["Encoder", "EncoderSpec", "TokenEncoder", "get", "list", "load", "register", "wrap"]
