"""The parameters of Img2Gene, checked together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from img2gene._errors import listing, raise_problems

RIDGE_ROLES = ("mixture", "residual", "none")
WEIGHTINGS = ("none", "density")


@dataclass(frozen=True)
class Parameters:
    """Parameters of :class:`~img2gene.models.img2gene.Img2Gene`, which documents them."""

    effect: str
    n_confounders: int
    objective: str
    weighting: str
    pathways: bool
    neighborhood: bool
    section_view: bool
    ridge: str
    center: str
    coherence: float
    pathway: float
    pathway_coherence: float
    distillation: float
    n_models: int
    n_neighbors: int
    n_components: int
    n_latents: int
    dim: int
    heads: int
    dropout: float
    batch_size: int
    learning_rate: float
    weight_decay: float
    max_epochs: int | None
    patience: int
    n_validations: int
    refit: bool
    accelerator: str
    devices: int | str
    precision: str
    checkpoint_dir: str | Path | None

    def check(self) -> None:
        """Raise with everything that is wrong."""
        from img2gene.models.debias import EFFECTS
        from img2gene.models.img2gene.objective import OBJECTIVES

        raise_problems([*self._choices(EFFECTS, OBJECTIVES), *self._numbers(), *self._combinations()])

    def _choices(self, effects: tuple[str, ...], objectives: tuple[str, ...]) -> list[str]:
        options = {
            "effect": effects,
            "objective": objectives,
            "weighting": WEIGHTINGS,
            "ridge": RIDGE_ROLES,
            "center": ("section", "none"),
        }
        return [
            f"{name}={getattr(self, name)!r}: choose one of {listing(known)}."
            for name, known in options.items()
            if getattr(self, name) not in known
        ]

    def _numbers(self) -> list[str]:
        least = {
            "n_models": 1,
            "n_neighbors": 1,
            "n_components": 1,
            "n_latents": 1,
            "dim": 1,
            "heads": 1,
            "batch_size": 2,
            "patience": 1,
            "n_validations": 0,
            "n_confounders": 0,
            "coherence": 0,
            "pathway": 0,
            "pathway_coherence": 0,
            "weight_decay": 0,
        }
        problems = [
            f"{name}={getattr(self, name)!r}: expected at least {bound}."
            for name, bound in least.items()
            if not getattr(self, name) >= bound
        ]
        shares = {"dropout": self.dropout, "distillation": self.distillation}
        problems += [f"{name}={value!r}: expected 0 to 1." for name, value in shares.items() if not 0 <= value <= 1]
        if not self.learning_rate > 0:
            problems.append(f"learning_rate={self.learning_rate!r}: expected a positive number.")
        if self.max_epochs is not None and self.max_epochs < 1:
            problems.append(f"max_epochs={self.max_epochs!r}: expected at least 1, or None.")
        return problems

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
