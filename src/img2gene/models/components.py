"""Principal components of embeddings as inputs of networks: centred by section, scaled, and projected."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from img2gene._errors import Img2GeneError

_BLOCK_VALUES = 2**22


@dataclass(frozen=True)
class Components:
    """Projection of features onto components of unit energy in all.

    Attributes
    ----------
    mean
        float32 (width,): subtracted where ``center`` is ``"none"``.
    scale
        float32 (width,): SD of each feature within sections.
    axes
        float32 (k, width): principal axes of the scaled features, over the root mean squared length of a row.
    center
        ``"section"`` subtracts the mean of each section, ``"none"`` the training mean.
    """

    mean: np.ndarray
    scale: np.ndarray
    axes: np.ndarray
    center: str

    @classmethod
    def fit(
        cls,
        features: np.ndarray,
        sections: np.ndarray,
        k: int,
        *,
        center: str,
        seed: int,
        scale: np.ndarray | None = None,
    ) -> Components:
        """Components of features (n, …, width), divided by ``scale``; of at most 20,000 rows, chosen at random."""
        from img2gene.models.centring import centre
        from img2gene.models.decomposition import decompose

        flat = features.reshape(-1, features.shape[-1])
        names = np.repeat(sections, len(flat) // max(len(sections), 1))
        mean = flat.mean(axis=0, dtype=np.float64)
        # A sample is enough for the leading components, and the decomposition grows with the rows.
        if len(flat) > 20_000:
            rows = np.sort(np.random.default_rng(seed).choice(len(flat), 20_000, replace=False))
            flat, names = flat[rows], names[rows]
        centred = centre(flat, names, None if center == "section" else mean)
        decomposition = decompose(centred, np.zeros((len(centred), 0)), k, seed, scale)
        if not len(decomposition.components):
            raise Img2GeneError(
                "The features do not vary between the training spots"
                + (" of a section" if center == "section" else "")
                + ", so this model can learn nothing from them. Check the embedding and the images, or choose `ridge`, "
                "which then predicts the mean."
            )
        return cls(
            mean.astype(np.float32),
            decomposition.scale.astype(np.float32),
            (decomposition.components / np.sqrt(decomposition.energy)).astype(np.float32),
            center,
        )

    @staticmethod
    def array_shapes(name: str, k: int, width: str) -> dict[str, tuple[str | int, ...]]:
        """Shapes of the arrays of ``k`` components, stored under a name."""
        return {f"{name}.mean": (width,), f"{name}.scale": (width,), f"{name}.axes": (k, width)}

    def __call__(self, features: np.ndarray, sections: np.ndarray) -> np.ndarray:
        """float32 (n, …, k) of features (n, …, width), in blocks; nothing of the size of the features is copied."""
        width = features.shape[-1]
        per_spot = int(np.prod(features.shape[1:-1], dtype=int))
        out = np.empty((*features.shape[:-1], len(self.axes)), dtype=np.float32)
        axes = (self.axes / self.scale).T
        # Tokens have many rows per spot: a block is bounded by its values, not by its spots.
        step = max(_BLOCK_VALUES // (width * per_spot), 1)
        for name in np.unique(sections):
            rows = np.flatnonzero(sections == name)
            shift = _mean(features, rows, step) if self.center == "section" else self.mean
            for start in range(0, len(rows), step):
                part = rows[start : start + step]
                out[part] = (features[part].astype(np.float32) - shift) @ axes
        return out


def project_tokens(components: Components | None, tokens: np.ndarray | None, sections: np.ndarray) -> np.ndarray:
    """Components (n, m, w) of patch tokens; m is 0 where the networks do not look at any."""
    if components is None or tokens is None:
        return np.zeros((len(sections), 0, 0), dtype=np.float32)
    return components(tokens, sections)


def stored_components(**named: Components | None) -> dict[str, np.ndarray]:
    """The arrays of components under their names, those that there are."""
    return {
        f"{name}.{key}": getattr(components, key)
        for name, components in named.items()
        if components is not None
        for key in ("mean", "scale", "axes")
    }


def _mean(features: np.ndarray, rows: np.ndarray, step: int) -> np.ndarray:
    """Mean over chosen rows and all axes but the last, float32 (width,)."""
    total = np.zeros(features.shape[-1])
    for start in range(0, len(rows), step):
        part = features[rows[start : start + step]]
        total += part.reshape(-1, part.shape[-1]).sum(axis=0, dtype=np.float64)
    count = len(rows) * int(np.prod(features.shape[1:-1], dtype=int))
    return (total / max(count, 1)).astype(np.float32)
