"""Parameters that several models share, and their checks; one error names all that cannot be used."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from img2gene._checks import Arguments, shown
from img2gene._errors import listing
from img2gene.models.centring import CENTRES

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true", "32", "bf16", "16", "64")
# Names that need no look into Lightning's registry, which takes seconds to import.
_ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
# Larger networks would take more memory than any device has, and larger ensembles more than a day to build.
LARGEST_WIDTH, _MOST_MODELS = 8192, 1000


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
    devices: int | str | list[int] = 1
    precision: str = "32-true"
    checkpoint_dir: str | Path | None = None
    preset: str | None = None

    # Values of published configurations, by the name of the preset.
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @classmethod
    def of(cls, *args: Any, **parameters: Any) -> Self:
        """Parameters; those that are not passed are taken from the preset, if one is named."""
        preset = parameters.get("preset")
        values = cls.PRESETS.get(preset, {}) if isinstance(preset, str) else {}
        passed = inspect.signature(cls).bind(*args, **parameters).arguments
        return cls(**{**values, **passed})

    @classmethod
    def names(cls) -> list[str]:
        """List the names of the parameters."""
        return [part.name for part in fields(cls)]

    def check(self) -> None:
        """Convert all parameters to plain values; raise with everything that is wrong."""
        check = ParameterCheck(self)
        self._check_own(check)
        self._check_shared(check)
        check.messages += self._combinations(check.valid)
        check.raise_all()

    def _check_shared(self, check: ParameterCheck) -> None:
        check.one_of(center=CENTRES)
        check.choice("preset", self.preset, self.PRESETS, optional=True)
        check.wholes(1, ("n_components", "patience", "heads"))
        check.wholes(1, ("n_models",), most=_MOST_MODELS)
        check.wholes(1, ("dim",), most=LARGEST_WIDTH)
        check.wholes(2, ("batch_size",))
        check.wholes(0, ("n_validations",))
        check.wholes(1, ("max_epochs",), optional=True)
        check.numbers(("dropout",), 0, 1)
        check.numbers(("weight_decay",), 0)
        check.numbers(("learning_rate",), above=0)
        check.hardware()

    def _check_own(self, check: ParameterCheck) -> None:
        """Check the parameters of one kind of network."""

    def _combinations(self, valid: Callable[..., bool]) -> list[str]:
        """List parameters that are ``valid`` alone, but do not go together."""
        if valid("dim", "heads") and self.dim % self.heads:
            return [f"dim={self.dim} is not divisible by heads={self.heads}."]
        return []


class ParameterCheck(Arguments):
    """Convert and check the parameters of an object in place.

    Parameters
    ----------
    parameters
        A frozen dataclass, which is not in use yet.
    """

    def __init__(self, parameters: NetworkParameters) -> None:
        super().__init__()
        self.parameters = parameters

    def valid(self, *names: str) -> bool:
        """Whether nothing is wrong with these parameters."""
        return not any(message.startswith(f"{name}=") for name in names for message in self.messages)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self.parameters, name, value)

    def _value(self, name: str) -> Any:
        return getattr(self.parameters, name)

    def one_of(self, **options: Iterable[str]) -> None:
        """Check that each parameter is one of its options."""
        for name, known in options.items():
            self._set(name, self.choice(name, self._value(name), known))

    def wholes(self, least: int, names: Iterable[str], *, most: int | None = None, optional: bool = False) -> None:
        """Convert whole numbers."""
        for name in names:
            self._set(name, self.whole(name, self._value(name), least, most, optional=optional))

    def numbers(
        self,
        names: Iterable[str],
        least: float | None = None,
        most: float | None = None,
        *,
        above: float | None = None,
    ) -> None:
        """Convert numbers."""
        for name in names:
            self._set(name, self.number(name, self._value(name), least, most, above=above))

    def flags(self, names: Iterable[str]) -> None:
        """Convert truth values."""
        for name in names:
            self._set(name, self.flag(name, self._value(name)))

    def hardware(self) -> None:
        """Check accelerator, devices, precision and folder; whether the device exists is checked when it is used."""
        precision = self._value("precision")
        # Lightning also takes 16, 32 and 64.
        known = isinstance(precision, str | int | np.integer) and not isinstance(precision, bool)
        if not known or str(precision) not in PRECISIONS:
            self.messages.append(f"precision={shown(precision)}: choose one of {listing(PRECISIONS)}.")
        else:
            self._set("precision", str(precision))
        value = self._value("accelerator")
        options: Iterable[str] = _ACCELERATORS
        if isinstance(value, str) and value not in options:
            from img2gene.models.networks.train import accelerators

            options = sorted({*_ACCELERATORS, *accelerators()})
        self._set("accelerator", self.choice("accelerator", value, options))
        self._set("devices", self._devices(self._value("devices")))
        folder = self.path("checkpoint_dir", self._value("checkpoint_dir"), optional=True)
        self._set("checkpoint_dir", folder)

    def _devices(self, value: Any) -> Any:
        """Convert a number of devices, or their numbers as a list or a string."""
        if isinstance(value, str) and value:
            return value
        if isinstance(value, list | tuple) and value:
            return [self.whole(f"devices[{i}]", number, 0) for i, number in enumerate(value)]
        number = self.whole("devices", value, -1)
        if isinstance(number, int) and number == 0 and not isinstance(value, bool):
            self.messages.append("devices=0: expected at least one device, or -1 for all.")
        return number
