"""The parameters of CMRCNet, checked together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from img2gene._errors import raise_problems
from img2gene.models.options import bound_problems, choice_problems, positive_problems, share_problems
from img2gene.models.retrieval import SEARCHES, WEIGHTINGS

OUTPUTS = ("mixture", "retrieval", "regression")
KEYS = ("image", "expression", "both")
EXCLUSIONS = ("none", "section", "group")
_LEAST = {
    "k": 1,
    "n_models": 1,
    "n_components": 1,
    "n_gene_tokens": 1,
    "dim": 1,
    "heads": 1,
    "batch_size": 2,
    "max_epochs": 1,
    "patience": 1,
    "n_validations": 0,
    "contrast": 0,
    "reconstruction": 0,
    "regression": 0,
    "weight_decay": 0,
}


@dataclass(frozen=True)
class Parameters:
    """Parameters of :class:`~img2gene.models.cmrcnet.CMRCNet`, which documents them."""

    output: str = "mixture"
    ridge: bool = False
    contrast: float = 0.1
    reconstruction: float = 0.1
    regression: float = 1.0
    temperature: float = 16.0
    mask: float = 0.5
    k: int = 50
    weighting: str = "uniform"
    keys: str = "image"
    exclude: str = "none"
    search: str = "torch"
    center: str = "section"
    n_models: int = 2
    n_components: int = 256
    n_gene_tokens: int = 8
    dim: int = 256
    heads: int = 4
    dropout: float = 0.3
    batch_size: int = 64
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-4
    weight_decay: float = 1e-2
    max_epochs: int | None = None
    patience: int = 6
    n_validations: int = 1
    accelerator: str = "auto"
    devices: int | str = 1
    precision: str = "32-true"
    checkpoint_dir: str | Path | None = None

    def check(self) -> None:
        """Raise with everything that is wrong."""
        choices = {
            "output": OUTPUTS,
            "weighting": WEIGHTINGS,
            "keys": KEYS,
            "exclude": EXCLUSIONS,
            "search": SEARCHES,
            "center": ("section", "none"),
        }
        raise_problems(
            [
                *choice_problems(self, choices),
                *bound_problems(self, _LEAST),
                *share_problems(self, ("dropout", "mask")),
                *positive_problems(self, ("learning_rate", "final_learning_rate", "temperature")),
                *self._combinations(),
            ]
        )

    def _combinations(self) -> list[str]:
        problems = []
        if self.heads > 0 and self.dim % self.heads:
            problems.append(f"dim={self.dim} is not divisible by heads={self.heads}.")
        if not (self.contrast or self.reconstruction or self.regression):
            problems.append("contrast, reconstruction and regression are all 0: there is nothing to train for.")
        if self.output == "regression" and not self.regression:
            problems.append("output='regression' needs the head that regression=0 leaves out.")
        if self.keys != "image" and not self.contrast:
            problems.append(f"keys={self.keys!r}: with contrast=0 expression has no place in the shared space.")
        return problems
