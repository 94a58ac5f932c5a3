"""Which rows train and which are held out, and which patients are on both sides."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from img2gene._errors import Img2GeneError, MissingKeyError, listing
from img2gene._study.sections import group_labels, patient_labels

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True)
class Split:
    """Which rows train and which are held out.

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
    table: AnnData,
    groups: str,
    *,
    train_on: Iterable[str] | None,
    validate_on: Iterable[str] | None,
    table_key: str,
) -> Split:
    """Divide the rows by the values of ``groups``; names that do not occur are listed with those that do."""
    labels = group_labels(table, groups, table_key)
    held_out = np.isin(labels, named_groups(validate_on, labels, "validate_on", groups))
    chosen = ~held_out if train_on is None else np.isin(labels, named_groups(train_on, labels, "train_on", groups))
    both = np.unique(labels[chosen & held_out])
    if len(both):
        raise Img2GeneError(f"{listing(both)}: named in both `train_on` and `validate_on`.")
    if not chosen.any():
        raise Img2GeneError("Nothing is left to train on: `validate_on` names every group.")
    return Split(chosen, held_out, shared_patients(table, chosen, held_out))


def named_groups(names: Iterable[str] | None, labels: np.ndarray, argument: str, groups: str) -> list[str]:
    """Groups that an argument names, none for None; those that do not occur are listed with those that do."""
    if names is None:
        return []
    wanted = [str(name) for name in ([names] if isinstance(names, str) else names)]
    unknown = [name for name in wanted if name not in labels]
    if unknown or not wanted:
        raise MissingKeyError(
            f"{argument}={wanted}: no {groups} named {listing(unknown)} (available: {listing(np.unique(labels))})."
        )
    return wanted


def shared_patients(table: AnnData, one: np.ndarray, other: np.ndarray) -> list[str] | None:
    """Patients with rows on both sides; None if patients are not recorded."""
    patients = patient_labels(table)
    if patients is None:
        return None
    return sorted(set(patients[one].tolist()) & set(patients[other].tolist()))
