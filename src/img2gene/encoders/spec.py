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
    """Everything that is known about an encoder without loading it.

    Attributes
    ----------
    name
        Registered name; the embedding is stored in ``obsm["X_<name>"]``.
    width
        Features per field of view.
    input_px
        Side of the input in pixels it was trained on.
    any_size
        Whether it takes inputs of other sizes.
    mpp
        Microns per pixel it expects, or None if it was not trained on histology.
    mean, std
        Normalisation of RGB values in 0–1.
    licence
        Licence of the weights (SPDX identifier where there is one).
    gated
        Whether the weights need an account and an accepted agreement.
    source
        Package or hub repository of the weights.
    revision
        Version of the weights; part of a trained model's identity.
    build
        ``build(spec, device=…, amp=…, backend=…)`` loads the encoder.
    token_width
        Width of the tokens of a :class:`img2gene.encoders.TokenEncoder`; 0 for an encoder that gives none.
    last_stage
        Modules of its torch network that make up the last stage, by their dotted names: what is trained by
        ``img2gene.tl.fit(…, finetune="last")``. Empty for an encoder that cannot be fine-tuned.

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

        _schema.check_name(self.name, "encoder")
        if self.width < 1 or self.input_px < 1 or self.token_width < 0:
            raise Img2GeneError(
                f"Encoder `{self.name}`: width and input_px must be positive, token_width must not be negative."
            )
        if self.name.endswith("_tokens"):
            raise Img2GeneError(f"Encoder `{self.name}`: the ending `_tokens` names the tokens of another encoder.")
