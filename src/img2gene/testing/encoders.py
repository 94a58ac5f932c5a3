"""Check an encoder against its contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from img2gene import encoders
from img2gene._checks import Arguments, shown
from img2gene._errors import Img2GeneError
from img2gene.encoders import Encoder, EncoderSpec
from img2gene.testing._rules import close, demand

_N_PATCHES, _SIDE, _GRID, _RTOL = 5, 48, 3, 1e-3


def check_encoder(encoder: str | EncoderSpec | Encoder, *, atol: float = 1e-4) -> None:
    """Check that an encoder keeps its contract and its specification.

    The encoder is called with a few made-up patches of 48 pixels.

    The rules: features are float32 (n, width) and finite; they depend on the pixels, on no other patch of the
    batch, and on no earlier call; pixels are not changed; the fields of the specification are complete and
    possible; tokens, if the specification declares a ``token_width``, are float32 (n, grid², token_width), finite,
    independent of the batch, and come with the features of a plain call.

    Parameters
    ----------
    encoder
        Registered name of the encoder, or its specification; its weights are loaded on the CPU. Or the encoder itself,
        whose tokens are then not checked.
    atol
        Largest absolute difference of features that counts as equal.

    Raises
    ------
    AssertionError
        A rule is broken; the message says which.
    Img2GeneError
        No encoder of this name, or what was passed is no encoder.

    Examples
    --------
    >>> import img2gene as ig
    >>> ig.testing.check_encoder(ig.encoders.get("color-texture"))
    """
    check = Arguments()
    atol = check.number("atol", atol, 0)
    check.raise_all()
    checked = _encoder(encoder)
    patches = np.random.default_rng(0).integers(0, 256, (_N_PATCHES, _SIDE, _SIDE, 3), dtype=np.uint8)
    if not isinstance(checked, EncoderSpec):
        _check_features(checked, checked.width, patches, None, atol)
        return
    _check_fields(checked)
    loaded = checked.build(checked, device="cpu", amp=False, backend="auto")
    demand(loaded.width == checked.width, f"The encoder has width {loaded.width}, its specification {checked.width}.")
    side = None if checked.any_size else checked.input_px
    features = _check_features(loaded, checked.width, patches, side, atol)
    if checked.token_width:
        _check_tokens(loaded, checked.token_width, patches, side, features, atol)


def _encoder(encoder: Any) -> Any:
    """Look up a registered encoder by name; refuse what is no encoder."""
    if isinstance(encoder, str):
        return encoders.get(encoder)
    if isinstance(encoder, EncoderSpec):
        return encoder
    if isinstance(encoder, type) or not callable(encoder):
        raise Img2GeneError(
            f"encoder={shown(encoder)}: expected the name of an encoder, its specification, or an encoder: an object that "
            "is called with patches."
        )
    width = getattr(encoder, "width", None)
    demand(isinstance(width, int) and width > 0, "The encoder has no `width`, the number of its features.")
    return encoder


def _encode(encode: Callable[..., Any], *arguments: Any) -> Any:
    """Call an encoder; an error of its own breaks the rule that it takes any patches."""
    try:
        return encode(*arguments)
    except Exception as error:
        raise AssertionError(f"The encoder fails on uint8 patches {arguments[0].shape}: {error!r}.") from error


def _check_fields(spec: EncoderSpec) -> None:
    for name in ("licence", "source", "revision"):
        demand(bool(getattr(spec, name)), f"The specification has no `{name}`.")
    demand(min(spec.std) > 0, f"`std` of the specification is {spec.std}, expected positive values.")


def _check_features(encoder: Encoder, width: int, patches: np.ndarray, side: int | None, atol: float) -> np.ndarray:
    before = patches.copy()
    features = _encode(encoder, patches, side)
    demand(np.array_equal(patches, before), "The encoder changes the pixels of its input.")
    _check_values(features, "Features", (len(patches), width))
    demand(close(encoder(patches, side), features, atol, _RTOL), "A second call returns other features.")
    alone = np.concatenate([encoder(patches[i : i + 1], side) for i in range(len(patches))])
    demand(close(alone, features, atol, _RTOL), "Features of a patch depend on the other patches of its batch.")
    first = np.repeat(features[:1], len(patches), axis=0)
    demand(not close(features, first, atol, _RTOL), "All patches have the same features, whatever their pixels.")
    return features


def _check_tokens(
    encoder: object, width: int, patches: np.ndarray, side: int | None, features: np.ndarray, atol: float
) -> None:
    demand(hasattr(encoder, "tokens"), "The specification has a `token_width`, the encoder has no method `tokens`.")
    encode = encoder.tokens  # type: ignore[attr-defined]
    result = _encode(encode, patches, side, _GRID)
    demand(isinstance(result, tuple) and len(result) == 2, "`tokens` returns no pair of features and tokens.")
    pooled, tokens = result
    _check_values(tokens, "Tokens", (len(patches), _GRID**2, width))
    demand(close(pooled, features, atol, _RTOL), "`tokens` returns other features than a plain call.")
    alone = np.concatenate([encode(patches[i : i + 1], side, _GRID)[1] for i in range(len(patches))])
    demand(close(alone, tokens, atol, _RTOL), "Tokens of a patch depend on the other patches of its batch.")


def _check_values(values: np.ndarray, what: str, shape: tuple[int, ...]) -> None:
    demand(isinstance(values, np.ndarray), f"{what} are a {type(values).__name__}, expected an array of numpy.")
    demand(values.shape == shape, f"{what} have shape {values.shape}, expected {shape}.")
    demand(values.dtype == np.float32, f"{what} are {values.dtype}, expected float32.")
    demand(bool(np.isfinite(values).all()), f"{what} hold NaN or infinite values.")
