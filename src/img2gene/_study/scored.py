"""Say of which model scores are, and which of the scored sections it was trained on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from img2gene import _schema

if TYPE_CHECKING:
    import pandas as pd


def facts_of_scores(fingerprint: str, trained_on: Iterable[str]) -> dict[str, str]:
    """Build the attributes of a table of scores: of which model they are, and the scored sections of its training."""
    names = ", ".join(trained_on)
    facts = {_schema.FINGERPRINT: fingerprint, _schema.TRAINED_ON: names}
    return {name: text for name, text in facts.items() if text}


def stated_facts(scores: pd.DataFrame) -> dict[str, str]:
    """Read the facts of scores from attributes, or from columns, which files keep; what is unknown is left out."""
    found = {}
    for name in (_schema.FINGERPRINT, _schema.TRAINED_ON):
        values = scores[name].dropna().unique() if name in scores else [scores.attrs.get(name)]
        found[name] = list(dict.fromkeys(str(value) for value in values if value))
    models, trained_on = found[_schema.FINGERPRINT], found[_schema.TRAINED_ON]
    # Scores of several models together are those of none.
    return facts_of_scores(models[0] if len(models) == 1 else "", trained_on)
