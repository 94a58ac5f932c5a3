"""Published scores, which tables show next to the scores of a run."""

from __future__ import annotations

from dataclasses import dataclass

_TABLE = "DKAN, AAAI 2026, table 1: mean PCC of 250 genes and of the 50 best predicted ones"
_COHORTS = ("her2st", "stnet", "cscc")
# Mean PCC of all genes and of the 50 best predicted genes, for each of the cohorts above.
_DKAN = {
    "ST-Net": ((0.150, 0.287), (0.081, 0.192), (0.170, 0.289)),
    "HisToGene": ((0.150, 0.295), (0.103, 0.217), (0.178, 0.319)),
    "Hist2ST": ((0.193, 0.360), (0.142, 0.268), (0.185, 0.261)),
    "EGN": ((0.204, 0.364), (0.107, 0.207), (0.278, 0.388)),
    "BLEEP": ((0.151, 0.277), (0.095, 0.193), (0.269, 0.396)),
    "mclSTExp": ((0.163, 0.289), (0.095, 0.202), (0.168, 0.291)),
    "TRIPLEX": ((0.304, 0.491), (0.194, 0.344), (0.363, 0.476)),
    "DKAN": ((0.330, 0.531), (0.219, 0.387), (0.407, 0.508)),
}
_PROBE = {"ResNet50": 0.326, "UNI": 0.386, "Virchow2": 0.398, "H-optimus-0": 0.415, "H-optimus-1": 0.423}


@dataclass(frozen=True)
class PublishedScores:
    """Holds the published scores of one cohort.

    Attributes
    ----------
    source
        Publication, and the meaning of its scores.
    scores
        For each method, PCC over all genes and, if it was published, over the 50 best predicted genes.
    """

    source: str
    scores: dict[str, tuple[float, float | None]]


def published(cohort: str, protocol: str) -> PublishedScores | None:
    """Return the published scores of a protocol on a cohort, or None if there are none."""
    if protocol in ("lopo-smooth", "8-fold-smooth") and cohort in _COHORTS:
        place = _COHORTS.index(cohort)
        return PublishedScores(_TABLE, {method: rows[place] for method, rows in _DKAN.items()})
    if protocol == "hest-bench":
        source = "HEST-Benchmark, linear probe: mean PCC over its nine tasks, not over this task alone"
        return PublishedScores(source, {name: (value, None) for name, value in _PROBE.items()})
    return None
