"""Divide rows into training and held-out rows, and find patients on both sides."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from img2gene._errors import Img2GeneError, MissingKeyError, listing
from img2gene._study.study import Study


@dataclass(frozen=True)
class Split:
    """Training rows and held-out rows.

    Attributes
    ----------
    train, held_out
        bool (n_obs,).
    leakage
        Patients on both sides; empty for an honest split, None if patients are not known.
    """

    train: np.ndarray
    held_out: np.ndarray
    leakage: list[str] | None


def split(
    study: Study,
    groups: str,
    *,
    train_on: Iterable[str] | None,
    validate_on: Iterable[str] | None,
) -> Split:
    """Divide the rows by the values of ``groups``; unknown names are refused with a list of the known ones."""
    labels = study.groups(groups)
    held_out = np.isin(labels, named_groups(validate_on, labels, "validate_on", groups))
    chosen = ~held_out if train_on is None else np.isin(labels, named_groups(train_on, labels, "train_on", groups))
    overlap = np.unique(labels[chosen & held_out])
    if len(overlap):
        raise Img2GeneError(f"{listing(overlap)}: named in both `train_on` and `validate_on`.")
    if not chosen.any():
        raise Img2GeneError("Nothing is left to train on: `validate_on` names every group.")
    return Split(chosen, held_out, study.shared_patients(chosen, held_out))


def named_groups(names: Iterable[str] | None, labels: np.ndarray, argument: str, groups: str) -> list[str]:
    """List the groups that an argument names, none for None; refuse unknown names with a list of the known ones."""
    if names is None:
        return []
    chosen = [str(name) for name in ([names] if isinstance(names, str) else names)]
    unknown = [name for name in chosen if name not in labels]
    if unknown or not chosen:
        problem = f"no {groups} named {listing(unknown)}" if unknown else f"name at least one {groups}"
        raise MissingKeyError(f"{argument}={chosen}: {problem} (available: {listing(np.unique(labels))}).")
    return chosen
