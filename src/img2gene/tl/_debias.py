"""The argument ``debias=`` of a fit: which parts it names, and what they are fitted to."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from img2gene import _schema, models
from img2gene._checks import Arguments, several, shown
from img2gene._errors import Img2GeneError, listing
from img2gene._study.restaining import stored_changes
from img2gene._study.study import Study
from img2gene.models import Predictor, TrainingData
from img2gene.models.bias.debiasing import Debiasing
from img2gene.models.bias.level import FEWEST_UNITS, SectionLevel
from img2gene.models.bias.stain import StainShrinkage
from img2gene.models.predictor import centres_by_section

logger = logging.getLogger(__name__)

PARTS = ("stain", "level", "depth")


@dataclass(frozen=True)
class DebiasChoice:
    """Parts of the debiasing that a fit uses."""

    parts: tuple[str, ...] = ()

    def check(self, predictor: Predictor, layer: str | None, *, finetuned: bool) -> None:
        """Refuse what can be known before anything is trained."""
        if "stain" in self.parts and finetuned:
            raise Img2GeneError("debias='stain': a fine-tuned encoder has no restained patches. Leave one of both out.")
        if "level" in self.parts and not centres_by_section(predictor):
            raise Img2GeneError(
                f"debias='level': the model `{predictor.name}` does not centre by section, and a level is added only "
                "to models that do. Leave it out."
            )
        if "depth" in self.parts and layer is not None:
            raise Img2GeneError(
                "debias='depth' needs counts, which labels from `layer=` do not have. Leave `layer` out."
            )

    def fit(
        self,
        study: Study,
        rows: np.ndarray,
        identity: dict[str, Any],
        predictor: Predictor,
        data: TrainingData,
        seed: int,
    ) -> tuple[Debiasing | None, dict[str, Any]]:
        """Fit the parts to the training data; return them and a report of what was done, and what that changed."""
        report: dict[str, Any] = {"parts": [*self.parts, *_effect_of(predictor)]}
        stain = level = None
        if "stain" in self.parts:
            stain, report["stain"] = _stain(study, rows, identity, data)
        if "level" in self.parts:
            seen = Debiasing(stain).seen(data)
            level, report["level"] = _level(predictor, seen, seed)
        if "depth" in self.parts:
            report["depth"] = {"predicted_at": _schema.UNLIMITED}
        return None if stain is None and level is None else Debiasing(stain, level), report


def _stain(
    study: Study, rows: np.ndarray, identity: dict[str, Any], data: TrainingData
) -> tuple[StainShrinkage, dict[str, Any]]:
    """Fit the shrinkage to the restained patches of the training sections."""
    name = identity["name"]
    if "matrix" in identity:
        raise Img2GeneError(
            f"debias='stain': restained patches belong to an embedding, and `{identity['matrix']}` is a matrix of your own. Embed with "
            "`img2gene.pp.embed_patches(sdata, restained=40)`, or leave it out."
        )
    changes = stored_changes(study, name, identity["width"], rows)
    if changes is None:
        raise Img2GeneError(
            f"debias='stain': `{study.name}.obsm` has no restained patches of the training sections. Run "
            f"`img2gene.pp.embed_patches(sdata, {name!r}, restained=40{study.table_argument})`."
        )
    stain = StainShrinkage.fit(data.features, data.sections, changes)
    return stain, stain.effect(changes)


def checked_debias(check: Arguments, debias: Any, model: Any, params: dict[str, Any]) -> DebiasChoice:
    """Check ``debias``; an effect that it names becomes the parameter ``effect`` of the model, in ``params``."""
    if debias is None:
        return DebiasChoice()
    names = [debias] if isinstance(debias, str) else several(debias)
    effects = _effects()
    known = (*PARTS, *effects)
    if names is None or not all(isinstance(name, str) and name in known for name in names):
        check.messages.append(f"debias={shown(debias)}: choose from {listing(known)}, or None for nothing.")
        return DebiasChoice()
    if chosen := [name for name in dict.fromkeys(names) if name in effects]:
        _take_effect(check, chosen, model, params)
    return DebiasChoice(tuple(name for name in PARTS if name in names))


def _effects() -> tuple[str, ...]:
    from img2gene.models.networks.debiasing import EFFECTS

    return tuple(effect for effect in EFFECTS if effect != "none")


def _effect_of(predictor: Predictor) -> list[str]:
    """The effect that a predictor was made with, whether `debias`, a preset or its own parameter named it."""
    effect = getattr(getattr(predictor, "parameters", None), "effect", "none")
    return [] if effect == "none" else [effect]


def _take_effect(check: Arguments, chosen: list[str], model: Any, params: dict[str, Any]) -> None:
    """Set the effect as a parameter of the model; refuse several, and models without effects."""
    import inspect

    takes = (
        isinstance(model, str)
        and model in models.list()
        and "effect" in inspect.signature(models.get(model)).parameters
    )
    if len(chosen) > 1:
        check.messages.append(f"debias: {listing(chosen)} are alternatives, choose one of them.")
    elif not takes:
        check.messages.append(f"debias={chosen[0]!r}: the model {shown(model)} has no causal effects, 'img2gene' has.")
    elif params.get("effect", chosen[0]) != chosen[0]:
        check.messages.append(f"debias={chosen[0]!r} contradicts effect={params['effect']!r}: pass one of them.")
    else:
        params["effect"] = chosen[0]


def _level(predictor: Predictor, data: TrainingData, seed: int) -> tuple[SectionLevel, dict[str, Any]]:
    """Fit levels of sections."""
    level, report = SectionLevel.fit(data, seed=seed, spot_weights=getattr(predictor, "spot_weights", None))
    if report["validated_on"] != "group":
        logger.warning(
            "fewer than %d training groups: levels were validated on left-out %ss, so levels of new patients are unknown",
            FEWEST_UNITS,
            report["validated_on"],
        )
    return level, report
