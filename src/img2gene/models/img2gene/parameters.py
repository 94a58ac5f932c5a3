"""The parameters of Img2Gene, checked together."""

from __future__ import annotations

from dataclasses import dataclass, field

from img2gene._checks import bound_problems, choice_problems, share_problems
from img2gene._errors import raise_problems
from img2gene.models.networks.parameters import NetworkParameters

RIDGE_ROLES = ("mixture", "residual", "none")
WEIGHTINGS = ("none", "density")
_LEAST = {
    "n_neighbors": 1,
    "n_latents": 1,
    "k": 1,
    "n_confounders": 0,
    "coherence": 0,
    "pathway": 0,
    "pathway_coherence": 0,
}


@dataclass(frozen=True)
class Img2GeneParameters(NetworkParameters):
    """Parameters of :class:`~img2gene.models.img2gene.Img2Gene`, which documents them."""

    effect: str = "none"
    n_confounders: int = 0
    objective: str = "gaussian"
    weighting: str = "none"
    pathways: bool = True
    neighborhood: bool = True
    section_view: bool = True
    ridge: str = "mixture"
    retrieval: bool = True
    k: int = 30
    coherence: float = 0.1
    pathway: float = 0.1
    pathway_coherence: float = 0.1
    distillation: float = 0.3
    n_neighbors: int = 6
    n_latents: int = 16
    refit: bool = True
    n_models: int = field(default=5, kw_only=True)
    n_validations: int = field(default=3, kw_only=True)

    def check(self) -> None:
        """Raise with everything that is wrong."""
        # Imported here, as these modules import torch.
        from img2gene.models.img2gene.objective import OBJECTIVES
        from img2gene.models.networks.debiasing import EFFECTS

        choices = {"effect": EFFECTS, "objective": OBJECTIVES, "weighting": WEIGHTINGS, "ridge": RIDGE_ROLES}
        raise_problems(
            [
                *choice_problems(self, choices),
                *bound_problems(self, _LEAST),
                *share_problems(self, ("distillation",)),
                *self.shared_problems(),
                *self._combinations(),
            ]
        )

    def _combinations(self) -> list[str]:
        problems = []
        if self.objective != "gaussian" and self.weighting != "none":
            problems.append(f"weighting={self.weighting!r} goes with objective='gaussian' only.")
        if self.objective == "negative_binomial" and self.ridge == "residual":
            problems.append("ridge='residual' has no counts to predict: choose 'mixture' or 'none'.")
        if not self.refit and self.n_validations < 1:
            problems.append("refit=False keeps the network of a validation: set `n_validations` to 1 or more.")
        return problems
