"""The parameters of CMRCNet, checked together."""

from __future__ import annotations

from dataclasses import dataclass, field

from img2gene._checks import bound_problems, choice_problems, positive_problems, share_problems
from img2gene._errors import raise_problems
from img2gene.models.networks.parameters import NetworkParameters
from img2gene.models.reference_bank import WEIGHTINGS

OUTPUTS = ("mixture", "retrieval", "regression")
KEYS = ("image", "expression", "both")
EXCLUSIONS = ("none", "section", "group")
_LEAST = {"k": 1, "n_gene_tokens": 1, "contrast": 0, "reconstruction": 0, "regression": 0}


@dataclass(frozen=True)
class CMRCNetParameters(NetworkParameters):
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
    n_gene_tokens: int = 8
    final_learning_rate: float = 1e-4
    # Defaults that differ from the other networks.
    n_models: int = field(default=2, kw_only=True)
    dim: int = field(default=256, kw_only=True)
    batch_size: int = field(default=64, kw_only=True)

    def check(self) -> None:
        """Raise with everything that is wrong."""
        choices = {
            "output": OUTPUTS,
            "weighting": WEIGHTINGS,
            "keys": KEYS,
            "exclude": EXCLUSIONS,
        }
        raise_problems(
            [
                *choice_problems(self, choices),
                *bound_problems(self, _LEAST),
                *share_problems(self, ("mask",)),
                *positive_problems(self, ("final_learning_rate", "temperature")),
                *self.shared_problems(),
                *self._combinations(),
            ]
        )

    def _combinations(self) -> list[str]:
        problems = []
        if not (self.contrast or self.reconstruction or self.regression):
            problems.append(
                "contrast, reconstruction and regression are all 0, so that there is no loss to train with."
            )
        if self.output == "regression" and not self.regression:
            problems.append("output='regression' needs the head that regression=0 leaves out.")
        if self.keys != "image" and not self.contrast:
            problems.append(f"keys={self.keys!r}: with contrast=0 expression is not embedded in the shared space.")
        return problems
