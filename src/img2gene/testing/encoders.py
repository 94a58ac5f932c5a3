"""Check an encoder against its contract."""

from __future__ import annotations

import numpy as np

from img2gene.encoders import EncoderSpec

_N_PATCHES, _SIDE, _GRID = 5, 48, 3


def check_encoder(spec: EncoderSpec, *, atol: float = 1e-4) -> None:
    """Check that an encoder keeps its specification.

    Parameters
    ----------
    spec
        Specification of the encoder, registered or not. Its weights are loaded on the CPU.
    atol
        Largest absolute difference of features that counts as equal.

    Raises
    ------
    AssertionError
        The encoder breaks a rule. The message says which: features are float32 (n, width) and finite; they depend on the
        pixels, on no other patch of the batch, and on nothing that an earlier call left; pixels are not changed; tokens, if
        the specification declares a ``token_width``, are (n, grid², token_width).

    Examples
    --------
    >>> import img2gene as ig
    >>> ig.testing.check_encoder(ig.encoders.get("color-texture"))
    """
    encoder = spec.build(spec, device="cpu", amp=False, backend="auto")
    side = None if spec.any_size else spec.input_px
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (_N_PATCHES, _SIDE, _SIDE, 3), dtype=np.uint8)
    before = patches.copy()
    features = encoder(patches, side)
    _demand(np.array_equal(patches, before), "The encoder changes the pixels of its input.")
    shape = (_N_PATCHES, spec.width)
    _demand(features.shape == shape, f"Features have shape {features.shape}, the specification says {shape}.")
    _demand(features.dtype == np.float32, f"Features are {features.dtype}, expected float32.")
    _demand(bool(np.isfinite(features).all()), "Features hold NaN or infinite values.")
    _demand(_close(encoder(patches, side), features, atol), "A second call returns other features.")
    alone = np.concatenate([encoder(patches[i : i + 1], side) for i in range(_N_PATCHES)])
    _demand(_close(alone, features, atol), "Features of a patch depend on the other patches of its batch.")
    _demand(
        not _close(features, np.repeat(features[:1], _N_PATCHES, axis=0), atol),
        "All patches have the same features, whatever their pixels.",
    )
    if spec.token_width:
        _check_tokens(spec, encoder, patches, side)


def _check_tokens(spec: EncoderSpec, encoder: object, patches: np.ndarray, side: int | None) -> None:
    _demand(hasattr(encoder, "tokens"), "The specification has a `token_width`, the encoder has no method `tokens`.")
    _, tokens = encoder.tokens(patches, side or _SIDE, _GRID)  # type: ignore[attr-defined]
    shape = (_N_PATCHES, _GRID**2, spec.token_width)
    _demand(tokens.shape == shape, f"Tokens have shape {tokens.shape}, expected {shape} (n, grid², token_width).")
    _demand(bool(np.isfinite(tokens).all()), "Tokens hold NaN or infinite values.")


def _close(one: np.ndarray, other: np.ndarray, atol: float) -> bool:
    return one.shape == other.shape and np.allclose(one, other, rtol=1e-3, atol=atol)


def _demand(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)
