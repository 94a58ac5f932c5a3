"""Check what goes into an encoder and what it returns, so that an error names the encoder."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from img2gene._checks import Arguments, shown
from img2gene._errors import Img2GeneError

logger = logging.getLogger(__name__)


class CheckedEncoder:
    """Runs an encoder and checks patches, features and tokens; all other attributes are the encoder's own.

    Parameters
    ----------
    encoder
        Encoder as its ``build`` function returns it.
    name, width, token_width
        Name and widths of its specification.
    """

    def __init__(self, encoder: Any, name: str, width: int, token_width: int = 0) -> None:
        self.encoder, self.name, self.width, self.token_width = encoder, name, width, token_width
        self._warned = False

    def __getattr__(self, name: str) -> Any:
        # Copying and unpickling look for methods before `encoder` is set.
        if name.startswith("__") or name == "encoder":
            raise AttributeError(name)
        return getattr(self.encoder, name)

    def __call__(self, patches: np.ndarray, side: int | None = None) -> np.ndarray:
        """Compute features float32 (n, width) of uint8 (n, h, h, 3) patches, resized to ``side`` pixels first."""
        side = _checked_input(patches, side)
        features = self._run(len(patches), lambda: self.encoder(patches, side))
        return self._features(features, patches)

    def tokens(self, patches: np.ndarray, side: int | None, grid: int) -> tuple[np.ndarray, np.ndarray]:
        """Compute features and, in the same pass, tokens float32 (n, grid², token_width)."""
        side = _checked_input(patches, side)
        check = Arguments()
        grid = check.whole("grid", grid, 1)
        if not self.token_width or not hasattr(self.encoder, "tokens"):
            check.messages.append(f"Encoder `{self.name}` gives no tokens; call it for features.")
        check.raise_all()
        pair = self._run(len(patches), lambda: self.encoder.tokens(patches, side, grid))
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise Img2GeneError(
                f"Encoder `{self.name}`: `tokens` returned {type(pair).__name__}, expected features and tokens."
            )
        shape = (len(patches), grid**2, self.token_width)
        return self._features(pair[0], patches), checked_output(pair[1], shape, self.name, "tokens")

    def _run(self, n_patches: int, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (Img2GeneError, MemoryError):
            raise
        except Exception as error:
            raise Img2GeneError(
                f"Encoder `{self.name}` failed on a batch of {n_patches} patches: {type(error).__name__}: {error}"
            ) from error

    def _features(self, values: Any, patches: np.ndarray) -> np.ndarray:
        features = checked_output(values, (len(patches), self.width), self.name, "features")
        if not self._warned and _constant(features) and not _constant(patches.mean(axis=(1, 2))):
            self._warned = True
            logger.warning(
                "encoder %s returns the same features for %d different patches; nothing can be predicted from them",
                self.name,
                len(patches),
            )
        return features


def checked_output(values: Any, shape: tuple[int, ...], name: str, what: str) -> np.ndarray:
    """Convert what an encoder returned to float32; raise if it is not numeric, of another shape, or not finite."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise Img2GeneError(f"Encoder `{name}` returned {what} that are no array: {error}") from error
    if array.dtype.kind not in "fiu":
        raise Img2GeneError(f"Encoder `{name}` returned {what} of type {array.dtype}, expected float32.")
    if array.shape != shape:
        raise Img2GeneError(f"Encoder `{name}` returned {what} of shape {array.shape}, expected {shape}.")
    with np.errstate(over="ignore"):
        output = array.astype(np.float32, copy=False)
    if not np.isfinite(output).all():
        faulty = int((~np.isfinite(output.reshape(len(output), -1)).all(axis=1)).sum())
        raise Img2GeneError(
            f"Encoder `{name}` returned {what} that are NaN or infinite in float32 for {faulty} of {len(output)} "
            "patches. Check it with `img2gene.testing.check_encoder`; with `amp=True`, try `amp=False`."
        )
    return output


def _checked_input(patches: Any, side: Any) -> Any:
    """Check patches, and convert ``side`` to int."""
    check = Arguments()
    side = check.whole("side", side, 1, optional=True)
    if not isinstance(patches, np.ndarray):
        check.messages.append(f"patches={shown(patches)}: expected an array uint8 (n, h, h, 3).")
    elif patches.dtype != np.uint8 or not _square(patches.shape):
        check.messages.append(
            f"patches are {patches.dtype} of shape {patches.shape}, expected uint8 (n, h, h, 3) with values from 0 to 255."
        )
    check.raise_all()
    return side


def _square(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[1] == shape[2] > 0 and shape[3] == 3


def _constant(values: np.ndarray) -> bool:
    """Return whether several rows are all the same."""
    return len(values) > 1 and bool((values == values[0]).all())
