"""Means with confidence intervals, and paired comparisons, over few units such as patients."""

from __future__ import annotations

import numpy as np

from img2gene._checks import Arguments
from img2gene._errors import Img2GeneError
from img2gene.metrics._inputs import vector


def mean_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """Compute the mean of independent values, with its interval by Student's t.

    mean ± t_{(1 + level) / 2, n − 1} · SD / √n. With few patients the interval is wide; a bootstrap over few patients
    would be too narrow.

    Parameters
    ----------
    values
        (n,), one value for each independent unit, usually a patient; NaN are left out.
    level
        Coverage, between 0 and 1.

    Returns
    -------
    Mean, lower and upper bound. The bounds are NaN with fewer than two values, the mean without any.

    Examples
    --------
    >>> from img2gene.metrics import mean_interval
    >>> [round(bound, 3) for bound in mean_interval([1.0, 2.0, 3.0])]
    [2.0, -0.484, 4.484]
    """
    from scipy.stats import t

    check = Arguments()
    level = check.number("level", level)
    check.raise_all()
    if not 0 < level < 1:
        raise Img2GeneError(f"level={level!r}: expected a number between 0 and 1.")
    values = vector(values, "values")
    known = values[np.isfinite(values)]
    if not len(known):
        return np.nan, np.nan, np.nan
    mean = float(known.mean())
    if len(known) < 2:
        return mean, np.nan, np.nan
    half = float(t.ppf((1 + level) / 2, len(known) - 1) * known.std(ddof=1) / np.sqrt(len(known)))
    return mean, mean - half, mean + half


def signed_rank_pvalue(differences: np.ndarray) -> float:
    """Test with Wilcoxon's signed ranks, two-sided, whether differences are symmetric around 0.

    Parameters
    ----------
    differences
        (n,), one for each pair; NaN are left out. Exact below 50 differences without ties, else the normal
        approximation.

    Returns
    -------
    The p-value; NaN without differences, 1 where all are 0.

    References
    ----------
    Wilcoxon, "Individual comparisons by ranking methods", Biometrics Bulletin 1945; :func:`scipy.stats.wilcoxon`.

    Examples
    --------
    >>> from img2gene.metrics import signed_rank_pvalue
    >>> signed_rank_pvalue([1.0, 2.0, 3.0, 4.0, 5.0])
    0.0625
    """
    from scipy.stats import wilcoxon

    differences = vector(differences, "differences")
    known = differences[np.isfinite(differences)]
    if not len(known):
        return np.nan
    # scipy divides 0 by 0 where all differences are 0, and warns.
    if not known.any():
        return 1.0
    return float(wilcoxon(known).pvalue)
