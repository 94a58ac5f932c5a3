"""Look for leaks between the groups of a split, in the names, values and noise of a study's table."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from img2gene import _schema
from img2gene._errors import listing, raise_problems
from img2gene._leaks import duplicates, smoothing
from img2gene._study.expression import count_problems, in_tissue, library_size, measured, row_sums, value_problems
from img2gene._study.inputs import embedding
from img2gene._study.matrices import in_memory
from img2gene._study.study import Study

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)
# Limits, with the margins measured around them, are documented in docs/guide/validation.md.
MAX_MATCHING = 0.5
MIN_DONOR_DISTANCE = 0.35
MIN_NOISE_RATIO = 0.75
MAX_NOISE_AUTOCORRELATION = 0.08
MAX_EXPLAINED = 0.1
# Squared distances to the nearest and the second nearest spot: expression has its noise twice, an embedding has none.
_CLOSER = {"expression": 0.5, "embedding": 0.25}
# Patients closer than this (an SD of about 0.07 in log expression) cannot be distinguished.
_MIN_TYPICAL_DISTANCE = 0.01
_MATCHED_GENES, _MIN_MATCHED_GENES = 500, 10
_MAX_SPOTS = 5000


@dataclass(frozen=True)
class Finding:
    """One leak.

    Attributes
    ----------
    kind
        ``"shared patient"``, ``"similar sections"``, ``"duplicated spots"``, ``"smoothed labels"`` or ``"panel"``.
    severity
        ``"error"`` if scores of the split cannot be honest, ``"warning"`` if it needs a manual check.
    sections, groups
        Names of the sections and groups concerned, joined to one text.
    value, threshold
        The number that shows the leak, and the limit that it was compared with.
    message
        Description of the leak and the next step.
    """

    kind: str
    severity: str
    sections: str
    groups: str
    value: float
    threshold: float
    message: str


def find_leaks(
    study: Study,
    groups: str,
    *,
    layer: str | None = None,
    identity: dict[str, Any] | None = None,
    uses_panel: bool = True,
    seed: int = 0,
) -> list[Finding]:
    """Look for leaks between the groups of a split that holds out each group once.

    Parameters
    ----------
    study
        Study; it is not changed. Where X holds no counts, sections are compared by their embedding alone.
    groups
        Column of obs that is held out by.
    layer
        Training labels; by default they are made from the counts in X.
    identity
        Which embedding is compared, see :func:`img2gene._study.inputs.choose_encoder`; None compares none.
    uses_panel
        Whether the predicted genes come from ``var["panel"]``.
    seed
        Seed of the spots that are drawn from large sections.

    Returns
    -------
    Findings, errors first; empty if there are none.

    Raises
    ------
    Img2GeneError
        No such column or layer, or values that are missing or infinite.
    """
    table = study.table
    raise_problems(value_problems(table, layer, study.name))
    subject = _Subject.of(study, groups)
    findings = [
        *_shared(subject),
        *_duplicated(subject, identity),
        *_similar(subject, identity, seed),
        *_smoothed(subject, layer, seed),
        *_panel(subject, uses_panel),
    ]
    return sorted(findings, key=lambda finding: finding.severity != "error")


@dataclass(frozen=True)
class _Subject:
    """The study in which leaks are looked for, with the group of each row and whether X holds counts."""

    study: Study
    column: str
    groups: np.ndarray
    has_counts: bool

    @classmethod
    def of(cls, study: Study, column: str) -> _Subject:
        groups, table = study.groups(column), study.table
        if study.patients is None:
            logger.warning('no obs["patient"]: only the data can show whether one patient is in several groups')
        has_counts = not count_problems(table.X, "X") and bool(
            (library_size(table) > 0).any() and in_memory(table.X).sum() > 0
        )
        return cls(study, column, groups, has_counts)

    @property
    def table(self) -> AnnData:
        return self.study.table

    @property
    def on_tissue(self) -> np.ndarray:
        return in_tissue(self.table)

    @property
    def sections(self) -> np.ndarray:
        return self.study.sections

    @property
    def patients(self) -> np.ndarray | None:
        return self.study.patients

    def filled_rows(self) -> np.ndarray:
        """Rows on tissue with counts, in the order of the study; all on tissue if X holds none, or nothing but zeros."""
        if not self.has_counts:
            return self.study.ordered(self.on_tissue)
        return self.study.ordered((row_sums(self.table.X) > 0) & measured(self.table, None))

    def finding(
        self, kind: str, severity: str, rows: np.ndarray, value: float, threshold: float, message: str
    ) -> Finding:
        """Make a finding that concerns the sections and groups of ``rows``."""
        sections, groups = (listing(np.unique(labels[rows])) for labels in (self.sections, self.groups))
        return Finding(kind, severity, sections, groups, float(value), float(threshold), message)

    def of_sections(self, names: Any) -> np.ndarray:
        """Rows of the named sections on tissue, in the order of the study."""
        return self.study.ordered(np.isin(self.sections, names) & self.on_tissue)


def _shared(subject: _Subject) -> Iterator[Finding]:
    """Find patients that are in several groups; if patients are not recorded, sections."""
    units, what = (subject.sections, "section") if subject.patients is None else (subject.patients, "patient")
    for name in np.unique(units):
        rows = np.flatnonzero(units == name)
        members = np.unique(subject.groups[rows])
        if len(members) > 1:
            text = (
                f"The {what} {name} is in {len(members)} groups of `{subject.column}` ({listing(members)}): training and test sets "
                f'share it. Split with `groups="{what}"`.'
            )
            yield subject.finding("shared patient", "error", rows, len(members), 1, text)


def _duplicated(subject: _Subject, identity: dict[str, Any] | None) -> Iterator[Finding]:
    """Find count vectors and embeddings that occur in two sections or groups."""
    names, parts = np.unique(np.column_stack([subject.sections, subject.groups]), axis=0, return_inverse=True)
    parts = parts.ravel()
    counts = subject.table.X
    usable = duplicates.beyond_chance(counts) & subject.on_tissue
    shared = {"counts": duplicates.identical_rows(counts, parts, usable)}
    if identity is not None:
        values = embedding(subject.study, identity)
        usable = _distinctive(subject.table, values, subject.sections) & subject.on_tissue
        shared["embeddings"] = duplicates.identical_rows(values, parts, usable)
    for what, matrix in shared.items():
        pairs = sp.triu(matrix, 1).tocoo()
        for one, other, n in zip(pairs.row, pairs.col, pairs.data, strict=True):
            (first, group), (second, other_group) = names[one], names[other]
            text = (
                f"{int(n)} spots of `{first}` (group {group}) and `{second}` (group {other_group}) have identical {what}: the "
                "same tissue under two names. Drop one of the sections, or give both the same patient."
            )
            severity = "error" if group != other_group else "warning"
            rows = np.flatnonzero(np.isin(parts, [one, other]))
            yield subject.finding("duplicated spots", severity, rows, n, 0, text)


def _distinctive(table: AnnData, values: np.ndarray, sections: np.ndarray) -> np.ndarray:
    """Mark embeddings that only the same patch can have: with tissue, not constant, and unique in their section."""
    distinctive = values.std(axis=1) > 0
    if _schema.PATCH_TISSUE in table.obs:
        distinctive &= table.obs[_schema.PATCH_TISSUE].to_numpy(dtype=float) >= 0.1
    # Blank patches are alike within a section too.
    keys = np.rec.fromarrays([np.unique(sections, return_inverse=True)[1].ravel(), duplicates.digests(values)])
    _, codes, times = np.unique(keys, return_inverse=True, return_counts=True)
    return distinctive & (times == 1)[codes.ravel()]


def _similar(subject: _Subject, identity: dict[str, Any] | None, seed: int) -> Iterator[Finding]:
    """Find similar sections of different patients; if patients are not recorded, of different groups."""
    filled = subject.filled_rows()
    names, sections = np.unique(subject.sections, return_inverse=True)
    known = subject.groups if subject.patients is None else subject.patients
    units = np.array([listing(np.unique(known[sections == s])) for s in range(len(names))])
    different = np.triu(units[:, None] != units, 1)
    if not different.any():
        return
    rng = np.random.default_rng(seed)
    sources = {}
    if subject.has_counts and subject.table.n_vars >= _MIN_MATCHED_GENES:
        sources["expression"] = (_stabilised(subject.table, filled), filled)
    if identity is not None:
        rows = subject.study.ordered(subject.on_tissue)
        sources["embedding"] = (_scaled(embedding(subject.study, identity)[rows]), rows)
    for what, (values, rows) in sources.items():
        share = duplicates.matching_share(values, sections[rows], units, _CLOSER[what], rng)
        for one, other in np.argwhere(different & (np.nan_to_num(share) >= MAX_MATCHING)):
            evidence = f"{share[one, other]:.0%} of the spots of one have a near-identical {what} in the other"
            yield _similar_finding(subject, names[[one, other]], share[one, other], MAX_MATCHING, evidence)
    if subject.has_counts:
        yield from _same_donor(subject, filled, sections, names, different, rng)


def _similar_finding(subject: _Subject, names: np.ndarray, value: float, threshold: float, evidence: str) -> Finding:
    text = (
        f"`{names[0]}` and `{names[1]}` look like the same patient: {evidence}. If they are, give both the same "
        f'`{subject.study.name}.obs["patient"]` and split with `groups="patient"`.'
    )
    return subject.finding("similar sections", "warning", subject.of_sections(names), value, threshold, text)


def _same_donor(
    subject: _Subject,
    filled: np.ndarray,
    sections: np.ndarray,
    names: np.ndarray,
    different: np.ndarray,
    rng: np.random.Generator,
) -> Iterator[Finding]:
    """Find sections with pseudobulks much closer than usual between patients; needs three pairs of sections."""
    n_spots = np.bincount(sections[filled], minlength=len(names))
    if different.sum() < 3 or n_spots.min() < duplicates.MIN_SPOTS:
        return
    distances = duplicates.donor_distances(subject.table.X[filled], sections[filled], rng)
    if distances is None:
        return
    typical = np.median(distances[different])
    if typical < _MIN_TYPICAL_DISTANCE:
        return
    for one, other in np.argwhere(different & (distances < MIN_DONOR_DISTANCE * typical)):
        ratio = max(distances[one, other] / typical, 0.0)
        evidence = f"beyond tissue and noise, their expression differs by {ratio:.2f} of what is usual between patients"
        yield _similar_finding(subject, names[[one, other]], ratio, MIN_DONOR_DISTANCE, evidence)


def _stabilised(table: AnnData, rows: np.ndarray) -> np.ndarray:
    """Take square roots of depth-corrected counts, so that all genes have similar noise."""
    library = library_size(table)[rows]
    order = np.argsort(-np.asarray(table.X.mean(axis=0)).ravel(), kind="stable")[:_MATCHED_GENES]
    values = _dense(table.X[rows][:, np.sort(order)]) * (np.median(library) / library[:, None])
    return np.sqrt(values).astype(np.float32)


def _scaled(values: np.ndarray) -> np.ndarray:
    """Scale each feature to unit standard deviation; drop constant ones."""
    spread = values.std(axis=0)
    return (values[:, spread > 0] / spread[spread > 0]).astype(np.float32)


def _smoothed(subject: _Subject, layer: str | None, seed: int) -> Iterator[Finding]:
    """Find sections in which counts or labels of neighbouring spots share their noise."""
    table = subject.table
    places = subject.study.places
    if places is None:
        logger.warning("no patches and no obsm['spatial']: whether labels are smoothed cannot be checked")
        return
    rng = np.random.default_rng(seed)
    filled = subject.filled_rows()
    noise: dict[str, dict[str, float]] = {}
    for name in np.unique(subject.sections):
        rows, has_counts = filled[subject.sections[filled] == name], subject.has_counts
        if layer is not None and not len(rows):
            # A section without counts can still have labels in the layer.
            rows, has_counts = subject.of_sections([name]), False
        rows = _nearby_rows(rows, places, rng)
        if len(rows) < smoothing.MIN_SPOTS:
            continue
        for test, value in _noise_of(table, rows, places[rows], layer, has_counts).items():
            noise.setdefault(test, {})[str(name)] = value
    if layer is not None and not _any_known(noise, ("labels", "explained")):
        logger.warning('too few spots or genes: whether layers["%s"] is smoothed cannot be checked', layer)
    labels = "X" if layer is None else f'layers["{layer}"]'
    for test, (threshold, sign, text) in _tests(labels).items():
        values = noise.get(test, {})
        failed = [name for name, value in values.items() if sign * (value - threshold) > 0]
        if failed:
            worst = max((values[name] for name in failed), key=lambda value: sign * value)
            message = (
                f"The labels of {listing(failed)} were averaged over neighbouring spots: {text.format(worst)}. Neighbours "
                "then share information, so scores are higher than for the measured expression. Use the raw counts."
            )
            yield subject.finding("smoothed labels", "error", subject.of_sections(failed), worst, threshold, message)


def _any_known(noise: dict[str, dict[str, float]], tests: tuple[str, ...]) -> bool:
    return any(np.isfinite(value) for test in tests for value in noise.get(test, {}).values())


def _tests(labels: str) -> dict[str, tuple[float, int, str]]:
    """Return threshold, side on which it fails (−1 below, 1 above), and wording of each test of noise."""
    return {
        "ratio": (MIN_NOISE_RATIO, -1, "counts of neighbours in X differ by {:.2f} of what Poisson counts must"),
        "counts": (MAX_NOISE_AUTOCORRELATION, 1, "the noise of single genes in X has a Moran's I of {:.2f}"),
        "labels": (MAX_NOISE_AUTOCORRELATION, 1, f"the noise of single genes in {labels} has a Moran's I of {{:.2f}}"),
        "explained": (
            MAX_EXPLAINED,
            1,
            f"neighbours explain {{:.0%}} of the variance in {labels} that the spot's own count leaves open",
        ),
    }


def _noise_of(
    table: AnnData, rows: np.ndarray, places: np.ndarray, layer: str | None, has_counts: bool
) -> dict[str, float]:
    """Test the noise of one section in its counts and in the layer, if any; without counts, in the values alone."""
    if not has_counts:
        values = in_memory(table.X if layer is None else table.layers[layer])[rows]
        genes = smoothing.label_genes(values)
        return {"labels": smoothing.noise_autocorrelation(_dense(values[:, genes]), places)}
    genes = smoothing.leading_genes(table.X[rows])
    counts = _dense(table.X[rows][:, genes])
    library = library_size(table)[rows]
    # In rarer genes, rounding after smoothing adds new, independent noise.
    scaled = np.log1p(smoothing.TARGET_SUM * counts[:, counts.mean(axis=0) > 1] / library[:, None])
    results = {
        "ratio": smoothing.noise_ratio(counts, library, places),
        "counts": smoothing.noise_autocorrelation(scaled, places),
    }
    if layer is not None:
        values = _dense(in_memory(table.layers[layer])[rows][:, genes])
        results["explained"] = smoothing.explained_by_neighbors(values, counts, library, places)
    return results


def _nearby_rows(rows: np.ndarray, places: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Keep all rows, or the 5,000 nearest to a random one, because the tests compare neighbours."""
    if len(rows) <= _MAX_SPOTS:
        return rows
    distance = np.square(places[rows] - places[rng.choice(rows)]).sum(axis=1)
    return rows[np.sort(np.argsort(distance, kind="stable")[:_MAX_SPOTS])]


def _panel(subject: _Subject, uses_panel: bool) -> Iterator[Finding]:
    """Check whether sections of the split helped to choose the gene panel."""
    if not uses_panel or _schema.PANEL not in subject.table.var:
        return
    hint = (
        "Let every fold choose with `genes=<number>`, or choose on other sections (`pp.select_genes(…, sections=…)`)."
    )
    record = _schema.read_json(subject.table, "panel", default={}).get("sections")
    if record is None:
        text = f'It is unknown where the genes of `var["{_schema.PANEL}"]` were chosen; on test sections, they leak. {hint}'
        all_rows = np.arange(subject.table.n_obs)
        yield subject.finding("panel", "warning", all_rows, float("nan"), float("nan"), text)
        return
    rows = subject.of_sections(record)
    members = np.unique(subject.groups[rows])
    if len(members):
        severity = "error" if len(members) > 1 else "warning"
        text = (
            f"The gene panel was chosen on sections of {len(members)} groups ({listing(members)}) that the split holds out in "
            f"turn. {hint}"
        )
        yield subject.finding("panel", severity, rows, len(members), 0, text)


def _dense(matrix: Any) -> np.ndarray:
    return np.asarray(matrix.toarray() if sp.issparse(matrix) else matrix, dtype=np.float64)
