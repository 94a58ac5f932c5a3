"""The parameters of Img2Gene, checked together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from img2gene.models.networks.parameters import LARGEST_WIDTH, NetworkParameters, ParameterCheck

# Without what this package adds: one network on uncentred data, without ridge and retrieval.
_PUBLISHED: dict[str, Any] = {
    "ridge": "none",
    "retrieval": False,
    "center": "none",
    "n_models": 1,
    "n_validations": 1,
    "learning_rate": 1e-4,
    "weight_decay": 0.0,
    "max_epochs": 200,
    "patience": 200,
}
RIDGE_ROLES = ("mixture", "residual", "none")
WEIGHTINGS = ("none", "density")


@dataclass(frozen=True)
class Img2GeneParameters(NetworkParameters):
    """Parameters of :class:`~img2gene.models.img2gene.Img2Gene`, which documents them."""

    effect: str = "none"
    n_confounders: int = 0
    objective: str = "gaussian"
    weighting: str = "none"
    depth_weights: bool = False
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
    n_responses: int = 128
    refit: bool = True
    n_models: int = field(default=5, kw_only=True)
    n_validations: int = field(default=3, kw_only=True)

    # Zhang et al., IEEE JBHI 2026: λ_ig, λ_p, λ_ip and effect of each data set.
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "her2st": _PUBLISHED | {"coherence": 0.1, "pathway": 1.0, "pathway_coherence": 1.0, "effect": "NIE"},
        "cscc": _PUBLISHED | {"coherence": 0.1, "pathway": 0.05, "pathway_coherence": 0.1, "effect": "TE"},
        "stnet": _PUBLISHED | {"coherence": 0.1, "pathway": 1.0, "pathway_coherence": 1.0, "effect": "NIE"},
        "liver": _PUBLISHED | {"coherence": 1.0, "pathway": 0.01, "pathway_coherence": 0.005, "effect": "TE"},
    }

    def _check_own(self, check: ParameterCheck) -> None:
        # Imported here, as these modules import torch.
        from img2gene.models.img2gene.objective import OBJECTIVES
        from img2gene.models.networks.debiasing import EFFECTS

        check.one_of(effect=EFFECTS, objective=OBJECTIVES, weighting=WEIGHTINGS, ridge=RIDGE_ROLES)
        check.wholes(1, ("n_neighbors", "n_latents"), most=LARGEST_WIDTH)
        check.wholes(0, ("n_confounders",), most=LARGEST_WIDTH)
        check.wholes(1, ("k", "n_responses"))
        check.numbers(("coherence", "pathway", "pathway_coherence"), 0)
        check.numbers(("distillation",), 0, 1)
        check.flags(("pathways", "neighborhood", "section_view", "retrieval", "refit", "depth_weights"))

    def _context_is_left_out(self, valid: Callable[..., bool]) -> bool:
        from img2gene.models.networks.debiasing import CONTEXT_EFFECTS

        return (
            valid("effect", "neighborhood", "section_view")
            and self.effect in CONTEXT_EFFECTS
            and not (self.neighborhood or self.section_view)
        )

    def _combinations(self, valid: Callable[..., bool]) -> list[str]:
        problems = super()._combinations(valid)
        if valid("objective", "weighting") and self.objective != "gaussian" and self.weighting != "none":
            problems.append(f"weighting={self.weighting!r} goes with objective='gaussian' only.")
        if valid("objective", "depth_weights") and self.objective != "gaussian" and self.depth_weights:
            problems.append("depth_weights=True goes with objective='gaussian' only.")
        if valid("objective", "ridge") and self.objective == "negative_binomial" and self.ridge == "residual":
            problems.append("ridge='residual' has no counts to predict: choose 'mixture' or 'none'.")
        if self._context_is_left_out(valid):
            problems.append(
                f"effect={self.effect!r} is what the neighbourhood and the section add, and both are left out. Set "
                "`neighborhood` or `section_view`, or choose another effect."
            )
        if valid("refit", "n_validations") and not self.refit and self.n_validations < 1:
            problems.append("refit=False keeps the network of a validation: set `n_validations` to 1 or more.")
        return problems
