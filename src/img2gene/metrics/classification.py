"""Scores of how well spots inside a structure are separated from spots outside; functions take (n_spots,) arrays."""

from __future__ import annotations

import numpy as np

from img2gene._errors import Img2GeneError, raise_problems
from img2gene.metrics._inputs import real_array


def auroc(truth: np.ndarray, score: np.ndarray) -> float:
    """Compute the area under the receiver operating characteristic: does the score rank inside above outside?

    AUROC = P(s⁺ > s⁻) + ½ P(s⁺ = s⁻) for a random spot inside (+) and one outside (−), from 0 to 1. Chance is ½,
    whatever the share of spots inside. Only the order of the scores counts.

    Parameters
    ----------
    truth
        bool (n_spots,): which spots are inside.
    score
        float (n_spots,), higher inside.

    Returns
    -------
    The area; NaN where ``truth`` holds only one class, or a score is NaN.

    References
    ----------
    Hanley & McNeil, "The meaning and use of the area under a ROC curve", Radiology 1982.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.metrics import auroc
    >>> float(auroc(np.array([True, False, True, False]), np.array([0.9, 0.4, 0.3, 0.1])))
    0.75
    """
    from sklearn.metrics import roc_auc_score

    inside, values = _pair(truth, score)
    return float(roc_auc_score(inside, values)) if _is_rankable(inside, values) else np.nan


def auprc(truth: np.ndarray, score: np.ndarray) -> float:
    """Compute the area under the precision-recall curve, as average precision: are the highest scores inside?

    AUPRC = Σₙ (Rₙ − Rₙ₋₁) Pₙ over the thresholds n, with precision P and recall R, above 0 and up to 1. Chance is the
    share of spots inside, so compare values within one section only.

    Parameters
    ----------
    truth
        bool (n_spots,): which spots are inside.
    score
        float (n_spots,), higher inside.

    Returns
    -------
    The area; NaN where ``truth`` holds only one class, or a score is NaN.

    References
    ----------
    Davis & Goadrich, "The relationship between precision-recall and ROC curves", ICML 2006.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.metrics import auprc
    >>> round(float(auprc(np.array([True, False, True, False]), np.array([0.9, 0.4, 0.3, 0.1]))), 3)
    0.833
    """
    from sklearn.metrics import average_precision_score

    inside, values = _pair(truth, score)
    return float(average_precision_score(inside, values)) if _is_rankable(inside, values) else np.nan


def dice(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Compute the Dice coefficient of two sets of spots: how far do they overlap?

    Dice = 2 · (in both) / (in truth + in predicted), from 0 (disjoint) to 1 (equal); the F₁ score of the decision.

    Parameters
    ----------
    truth, predicted
        bool (n_spots,): which spots are inside.

    Returns
    -------
    The coefficient; NaN where neither set has a spot, 0 where only one has.

    References
    ----------
    Dice, "Measures of the amount of ecologic association between species", Ecology 1945.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.metrics import dice
    >>> round(float(dice(np.array([True, True, False]), np.array([True, False, False]))), 3)
    0.667
    """
    one, two = (_as_bool(values) for values in (truth, predicted))
    _check_shapes(one, two)
    total = int(one.sum() + two.sum())
    return 2 * int((one & two).sum()) / total if total else np.nan


def _pair(truth: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    inside, values = _as_bool(truth), real_array(score, "score").astype(np.float64)
    _check_shapes(inside, values)
    return inside, values


def _is_rankable(inside: np.ndarray, values: np.ndarray) -> bool:
    # scikit-learn raises for NaN, and warns where an area is not defined.
    return bool(inside.any() and not inside.all() and not np.isnan(values).any())


def _as_bool(values: np.ndarray) -> np.ndarray:
    flags = real_array(values, "`truth` and decisions")
    if flags.dtype == bool or not flags.size:
        return flags.astype(bool)
    # A score passed as a decision would silently become True everywhere.
    if not np.isin(flags, (0, 1)).all():
        raise Img2GeneError("`truth` and decisions must be boolean, or contain only 0 and 1.")
    return flags.astype(bool)


def _check_shapes(one: np.ndarray, two: np.ndarray) -> None:
    problems = []
    if one.shape != two.shape:
        problems.append(f"Truth {one.shape} and score {two.shape} differ in shape.")
    if one.ndim != 1:
        problems.append(f"Expected (n_spots,) arrays, got {one.ndim} dimensions.")
    raise_problems(problems)
