"""The specification of an encoder: name, weights, licence, input size and normalisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from img2gene._errors import Img2GeneError

if TYPE_CHECKING:
    from img2gene.encoders.base import Encoder


@dataclass(frozen=True)
class EncoderSpec:
    """Describes an encoder completely, so that its weights need not be loaded to know it.

    Attributes
    ----------
    name
        Registered name; the embedding is stored in ``obsm["X_<name>"]``.
    width
        Features per field of view.
    input_px
        Side of its training images in pixels.
    any_size
        Whether it accepts inputs of other sizes.
    mpp
        Microns per pixel of its training images, or None if it was not trained on histology.
    mean, std
        Normalisation of RGB values in 0–1.
    licence
        Licence of the weights (SPDX identifier where there is one).
    gated
        Whether the weights need an account and an accepted agreement.
    source
        Package or hub repository of the weights.
    revision
        Version of the weights. Trained models store it and refuse features of another revision.
    build
        Function that loads the encoder, called as ``build(spec, device=…, amp=…, backend=…)``.
    token_width
        Width of the tokens of a :class:`img2gene.encoders.TokenEncoder`. 0 if the encoder gives no tokens.
    last_stage
        Dotted names of the modules that make up the last stage of its torch network.
        ``img2gene.tl.fit(…, finetune="last")`` trains these modules. Empty if the encoder cannot be fine-tuned.

    Examples
    --------
    >>> import img2gene as ig
    >>> ig.encoders.get("uni").gated
    True
    """

    name: str
    width: int
    input_px: int
    any_size: bool
    mpp: float | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    licence: str
    gated: bool
    source: str
    revision: str
    build: Callable[..., Encoder]
    token_width: int = 0
    last_stage: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        from img2gene import _schema

        # The name becomes part of a key in `obsm`, which spatialdata has to be able to store.
        _schema.check_name(self.name, "encoder")
        if self.width < 1 or self.input_px < 1 or self.token_width < 0:
            raise Img2GeneError(
                f"Encoder `{self.name}`: width and input_px must be positive, token_width must not be negative."
            )
        if self.name.endswith("_tokens"):
            raise Img2GeneError(f"Encoder `{self.name}`: the ending `_tokens` names the tokens of another encoder.")
