"""The parameters of CMRCNet, checked together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from img2gene.models.networks.parameters import LARGEST_WIDTH, NetworkParameters, ParameterCheck
from img2gene.models.reference_bank import WEIGHTINGS

OUTPUTS = ("mixture", "retrieval", "regression")
KEYS = ("image", "expression", "both")
EXCLUSIONS = ("none", "section", "group")


@dataclass(frozen=True)
class CMRCNetParameters(NetworkParameters):
    """Parameters of :class:`~img2gene.models.cmrcnet.CMRCNet`, which documents them."""

    output: str = "mixture"
    ridge: bool = True
    contrast: float = 0.1
    reconstruction: float = 0.1
    regression: float = 1.0
    temperature: float = 16.0
    mask: float = 0.5
    k: int = 50
    weighting: str = "uniform"
    keys: str = "image"
    exclude: str = "none"
    n_gene_tokens: int = 8
    final_learning_rate: float = 1e-4
    # Defaults that differ from the other networks.
    n_models: int = field(default=2, kw_only=True)
    dim: int = field(default=256, kw_only=True)
    batch_size: int = field(default=64, kw_only=True)

    # Liu et al., Medical Image Analysis 2026
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "output": "retrieval",
            "ridge": False,
            "contrast": 1.0,
            "reconstruction": 1.0,
            "regression": 0.0,
            "temperature": 1.0,
            "keys": "expression",
            "center": "none",
            "n_models": 1,
            "learning_rate": 1e-4,
            "final_learning_rate": 1e-5,
            "weight_decay": 1e-3,
            "max_epochs": 60,
            "patience": 60,
        }
    }

    def _check_own(self, check: ParameterCheck) -> None:
        check.one_of(output=OUTPUTS, weighting=WEIGHTINGS, keys=KEYS, exclude=EXCLUSIONS)
        check.wholes(1, ("k",))
        check.wholes(1, ("n_gene_tokens",), most=LARGEST_WIDTH)
        check.numbers(("contrast", "reconstruction", "regression"), 0)
        check.numbers(("mask",), 0, 1)
        check.numbers(("final_learning_rate", "temperature"), above=0)
        check.flags(("ridge",))

    def _combinations(self, valid: Callable[..., bool]) -> list[str]:
        problems = super()._combinations(valid)
        if not valid("contrast", "reconstruction", "regression"):
            return problems
        if not (self.contrast or self.reconstruction or self.regression):
            problems.append(
                "contrast, reconstruction and regression are all 0, so that there is no loss to train with."
            )
        if valid("output") and self.output == "regression" and not self.regression:
            problems.append("output='regression' needs the head that regression=0 leaves out.")
        if valid("keys") and self.keys != "image" and not self.contrast:
            problems.append(f"keys={self.keys!r}: with contrast=0 expression is not embedded in the shared space.")
        return problems
