"""What networks predict in place of single genes: leading components of the labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from img2gene.models.decomposition import leading_directions


@dataclass(frozen=True)
class Responses:
    """Leading components of the labels, in which squared error is that of the genes but for what the components leave out.

    Few components carry what an image can show, and outputs are most of the cost of a network: with components the cost does
    not grow with the number of genes.

    Attributes
    ----------
    directions
        float32 (G, r), orthonormal, with zeros where the labels have fewer components; None where outputs are the genes themselves.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from img2gene.models.img2gene.responses import Responses
    >>> labels = np.outer([1.0, -1.0, 2.0, -2.0], [1.0, 2.0, 0.5])
    >>> responses = Responses.of(labels, np.ones(4), 1, seed=0)
    >>> reduced = responses.reduce(torch.tensor(labels, dtype=torch.float32))
    >>> reduced.shape, np.allclose(responses.expand(reduced), labels, atol=1e-5)
    (torch.Size([4, 1]), True)
    """

    directions: np.ndarray | None = None

    @classmethod
    def of(cls, labels: np.ndarray, weights: np.ndarray, n: int, *, seed: int) -> Responses:
        """Components of centred labels (n_spots, G) of training spots with ``weights`` (n_spots,)."""
        if n >= labels.shape[1]:
            return cls()
        leading = leading_directions(labels * np.sqrt(weights)[:, None], n, seed)
        directions = np.zeros((labels.shape[1], n), dtype=np.float32)
        # Few spots have fewer components; the outputs of the others count nothing.
        directions[:, : leading.shape[1]] = leading
        return cls(directions)

    def reduce(self, labels: Tensor) -> Tensor:
        """Components (…, r) of labels (…, G).

        In their units the mean squared component is the mean squared label, so that losses keep their weights.
        """
        if self.directions is None:
            return labels
        n_genes, n = self.directions.shape
        return labels @ _like(self.directions, labels) * (n / n_genes) ** 0.5

    def expand(self, outputs: Tensor) -> Tensor:
        """Labels (…, G) of components (…, r)."""
        if self.directions is None:
            return outputs
        n_genes, n = self.directions.shape
        return outputs @ _like(self.directions, outputs).mT * (n_genes / n) ** 0.5

    def of_gene(self, gene: int, n_outputs: int) -> Tensor:
        """What each output (r,) counts in the label of a gene."""
        return self.expand(torch.eye(n_outputs))[:, gene]


def _like(values: np.ndarray, other: Tensor) -> Tensor:
    # Stored arrays are read-only, which PyTorch warns about if it does not copy them.
    return torch.tensor(values, dtype=other.dtype, device=other.device)
