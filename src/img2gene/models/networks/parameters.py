"""Parameters that several models share, and their checks; each check returns a list of problems for one error."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from img2gene._checks import _WHOLE, bound_problems, choice_problems, positive_problems, share_problems
from img2gene._errors import listing

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true", "32", "bf16", "16", "64")
# Names that need no look into Lightning's registry, which takes seconds to import.
_ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")


def training_problems(accelerator: object, precision: object) -> list[str]:
    """List an unknown accelerator or precision; whether the device exists is checked when it is used."""
    problems = []
    if str(precision) not in PRECISIONS:
        problems.append(f"precision={precision!r}: choose one of {listing(PRECISIONS)}.")
    if accelerator not in _ACCELERATORS:
        from img2gene.models.networks.train import accelerators

        known = sorted({*_ACCELERATORS, *accelerators()})
        if accelerator not in known:
            problems.append(f"accelerator={accelerator!r}: choose one of {listing(known)}.")
    return problems


@dataclass(frozen=True, kw_only=True)
class NetworkParameters:
    """Parameters of all networks on frozen embeddings; the predictors document them."""

    center: str = "section"
    n_models: int = 1
    n_components: int = 256
    dim: int = 128
    heads: int = 4
    dropout: float = 0.3
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    max_epochs: int | None = None
    patience: int = 6
    n_validations: int = 1
    accelerator: str = "auto"
    devices: int | str = 1
    precision: str = "32-true"
    checkpoint_dir: str | Path | None = None

    def shared_problems(self) -> list[str]:
        """List the invalid parameters."""
        least = {"n_models": 1, "n_components": 1, "dim": 1, "heads": 1, "batch_size": 2}
        least |= {"max_epochs": 1, "patience": 1, "n_validations": 0, "weight_decay": 0}
        problems = [
            *choice_problems(self, {"center": ("section", "none")}),
            *bound_problems(self, least),
            *share_problems(self, ("dropout",)),
            *positive_problems(self, ("learning_rate",)),
            *training_problems(self.accelerator, self.precision),
        ]
        # Divisibility is checked only for whole numbers; anything else is a problem already.
        whole = isinstance(self.heads, _WHOLE) and isinstance(self.dim, _WHOLE)
        if whole and self.heads > 0 and self.dim % self.heads:
            problems.append(f"dim={self.dim} is not divisible by heads={self.heads}.")
        return problems
