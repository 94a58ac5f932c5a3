"""The parameters of Img2Gene, checked together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from img2gene._errors import raise_problems
from img2gene.models.options import bound_problems, choice_problems, positive_problems, share_problems

RIDGE_ROLES = ("mixture", "residual", "none")
WEIGHTINGS = ("none", "density")
_LEAST = {
    "n_models": 1,
    "n_neighbors": 1,
    "n_components": 1,
    "n_latents": 1,
    "dim": 1,
    "heads": 1,
    "batch_size": 2,
    "max_epochs": 1,
    "patience": 1,
    "n_validations": 0,
    "n_confounders": 0,
    "coherence": 0,
    "pathway": 0,
    "pathway_coherence": 0,
    "weight_decay": 0,
}


@dataclass(frozen=True)
class Parameters:
    """Parameters of :class:`~img2gene.models.img2gene.Img2Gene`, which documents them."""

    effect: str = "none"
    n_confounders: int = 0
    objective: str = "gaussian"
    weighting: str = "none"
    pathways: bool = True
    neighborhood: bool = True
    section_view: bool = True
    ridge: str = "mixture"
    center: str = "section"
    coherence: float = 0.1
    pathway: float = 0.1
    pathway_coherence: float = 0.1
    distillation: float = 0.3
    n_models: int = 5
    n_neighbors: int = 6
    n_components: int = 256
    n_latents: int = 16
    dim: int = 128
    heads: int = 4
    dropout: float = 0.3
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    max_epochs: int | None = None
    patience: int = 6
    n_validations: int = 3
    refit: bool = True
    accelerator: str = "auto"
    devices: int | str = 1
    precision: str = "32-true"
    checkpoint_dir: str | Path | None = None

    def check(self) -> None:
        """Raise with everything that is wrong."""
        from img2gene.models.debias import EFFECTS
        from img2gene.models.img2gene.objective import OBJECTIVES

        choices = {
            "effect": EFFECTS,
            "objective": OBJECTIVES,
            "weighting": WEIGHTINGS,
            "ridge": RIDGE_ROLES,
            "center": ("section", "none"),
        }
        raise_problems(
            [
                *choice_problems(self, choices),
                *bound_problems(self, _LEAST),
                *share_problems(self, ("dropout", "distillation")),
                *positive_problems(self, ("learning_rate",)),
                *self._combinations(),
            ]
        )

    def _combinations(self) -> list[str]:
        problems = []
        if self.heads > 0 and self.dim % self.heads:
            problems.append(f"dim={self.dim} is not divisible by heads={self.heads}.")
        if self.objective != "gaussian" and self.weighting != "none":
            problems.append(f"weighting={self.weighting!r} goes with objective='gaussian' only.")
        if self.objective == "negative_binomial" and self.ridge == "residual":
            problems.append("ridge='residual' has no counts to predict: choose 'mixture' or 'none'.")
        if not self.refit and self.n_validations < 1:
            problems.append("refit=False keeps the network of a validation: set `n_validations` to 1 or more.")
        return problems
