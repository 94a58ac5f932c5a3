"""Rank genes by how much they vary with the tissue, and select the gene sets enriched among them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from img2gene._checks import Arguments, shown
from img2gene._errors import Img2GeneError
from img2gene.metrics import morans_i, neighbor_graph
from img2gene.metrics._inputs import place_array, section_numbers
from img2gene.metrics.spatial import position_ranks, tie_groups
from img2gene.models.centring import centre
from img2gene.pathways.inputs import checked_sets, finite_matrix

if TYPE_CHECKING:
    import pandas as pd

_COMPONENTS = 20
_BLOCK_VALUES = 2**23
# More would take hours, and p-values are refined anyway.
_MIN_PERMUTATIONS, _MAX_PERMUTATIONS = 100, 100_000
_SMALLEST_P = 1e-10
# Both criteria lie between −1 and 1 and are exact to about 1e-14.
_TIE = 1e-10


def rank_genes(
    labels: Any, sections: np.ndarray, positions: np.ndarray, features: np.ndarray | None = None, *, seed: int = 0
) -> np.ndarray:
    r"""Rank genes by how much they vary with the tissue.

    Two criteria, each turned into ranks from 0 (least) to 1 (most) and averaged:

    - spatial variability: Moran's I over the six nearest spots, averaged over sections;
    - association with morphology: the share of the gene's variance within sections that the 20 leading principal
      components of the features explain, both centred by section, adjusted for chance:
      :math:`1 - (1 - R^2)\,(n - s)/(n - s - c)` with *n* spots, *s* sections and *c* components.

    Parameters
    ----------
    labels
        (n_spots, n_genes) log-normalised expression, sparse or dense.
    sections
        (n_spots,) section of each spot.
    positions
        (n_spots, 2), comparable within a section.
    features
        (n_spots, width) embedding; without it only spatial variability ranks genes.
    seed
        Seed of the random projection that computes the principal components.

    Returns
    -------
    float64 (n_genes,), 0–1; NaN for genes that do not vary within any section.

    Raises
    ------
    Img2GeneError
        Arrays with different numbers of spots, or too few spots for the components.

    References
    ----------
    Moran, "Notes on continuous stochastic phenomena", Biometrika 1950; Ezekiel, "Methods of correlation
    analysis", 1930; Halko et al., "Finding structure with randomness", SIAM Review 2011.

    Examples
    --------
    >>> import numpy as np
    >>> from img2gene.pathways import rank_genes
    >>> place = np.arange(8.0)
    >>> labels = np.column_stack([place, place % 2])
    >>> rank_genes(labels, np.repeat("S1", 8), np.column_stack([place, place]))
    array([1., 0.])
    """
    labels, sections, positions, features, seed = _checked(labels, sections, positions, features, seed)
    members = [np.flatnonzero(sections == number) for number in np.unique(sections)]
    graphs = [neighbor_graph(positions[rows]) for rows in members]
    basis = None if features is None else _basis(features, sections, positions, seed)
    spatial, explained = [], []
    for block in _blocks(labels):
        spatial.append(_mean_known([morans_i(block[rows], graph) for rows, graph in zip(members, graphs, strict=True)]))
        if basis is not None:
            explained.append(_explained(centre(block, sections), basis, len(members)))
    criteria = [np.concatenate(spatial)] + ([] if basis is None else [np.concatenate(explained)])
    return np.mean([_ranks(values) for values in criteria], axis=0)


def _checked(labels: Any, sections: Any, positions: Any, features: Any, seed: Any) -> tuple[Any, ...]:
    """Convert and check the arguments of :func:`rank_genes`; sections become numbers."""
    labels = finite_matrix(labels, "labels")
    n = labels.shape[0]
    check = Arguments()
    if not n:
        check.messages.append("labels have no spots.")
    if sections is None:
        check.messages.append("sections=None: expected a name for each spot.")
    arrays = {"sections": sections, "positions": positions, "features": features}
    check.messages += [
        f"{name} has {_n_rows(values)} rows, labels have {n}."
        for name, values in arrays.items()
        if _n_rows(values) not in (None, n)
    ]
    seed = check.seed("seed", seed)
    check.raise_all()
    with check.collect():
        sections = section_numbers(sections, n)
    with check.collect():
        positions = place_array(positions, n)
    if features is not None:
        with check.collect():
            features = np.asarray(_dense(finite_matrix(features, "features")))
    check.raise_all()
    return labels, sections, positions, features, seed


def _n_rows(values: Any) -> int | None:
    """Count rows; None for what has none, which the check of its kind names."""
    shape = getattr(values, "shape", None)
    if isinstance(shape, tuple):
        return shape[0] if shape else None
    return len(values) if isinstance(values, list | tuple) else None


def _dense(matrix: Any) -> Any:
    return matrix.toarray() if sp.issparse(matrix) else matrix


def _blocks(labels: Any) -> Iterator[np.ndarray]:
    """Yield dense columns, as many at a time as keep double-precision copies small."""
    by_column = sp.csc_matrix(labels) if sp.issparse(labels) else labels
    width = max(1, _BLOCK_VALUES // max(labels.shape[0], 1))
    for start in range(0, labels.shape[1], width):
        block = by_column[:, start : start + width]
        yield (block.toarray() if sp.issparse(block) else np.asarray(block)).astype(np.float64)


def _basis(features: np.ndarray, sections: np.ndarray, positions: np.ndarray, seed: int) -> np.ndarray:
    """Compute the leading components of spots sorted by section and position, which the random projection follows."""
    order = np.lexsort((position_ranks(positions), sections))
    components = _components(features[order], sections[order], seed)
    basis = np.empty_like(components)
    basis[order] = components
    return basis


def _components(features: np.ndarray, sections: np.ndarray, seed: int) -> np.ndarray:
    """Compute orthonormal scores (n_spots, c) of the leading components of centred features of unit SD."""
    # Randomised: 20 of thousands of components need no exact decomposition, unlike ridge regression.
    from sklearn.utils.extmath import randomized_svd

    centred = centre(features, sections)
    scale = np.sqrt(np.square(centred).mean(axis=0))
    varying = scale > 1e-6 * max(float(scale.max(initial=0)), 1e-12)
    if not varying.any():
        return np.zeros((len(centred), 0))
    scaled = centred[:, varying] / scale[varying]
    u, singular, _ = randomized_svd(scaled, min(_COMPONENTS, *scaled.shape), n_iter=4, random_state=seed)
    return u[:, singular > 1e-6 * singular[0]]


def _explained(centred: np.ndarray, basis: np.ndarray, n_sections: int) -> np.ndarray:
    """Compute the adjusted share of each gene's variance within sections that the components explain."""
    total = np.square(centred).sum(axis=0)
    part = np.square(basis.T @ centred).sum(axis=0)
    freedom = len(centred) - n_sections
    if freedom <= basis.shape[1]:
        raise Img2GeneError(
            f"{len(centred)} spots of {n_sections} sections are too few to relate genes to {basis.shape[1]} components "
            "of morphology. Add sections, or leave out `features`."
        )
    share = np.divide(part, total, out=np.full_like(total, np.nan), where=total > 1e-12)
    return 1 - (1 - share) * freedom / (freedom - basis.shape[1])


def _mean_known(parts: list[np.ndarray]) -> np.ndarray:
    values = np.array(parts)
    known = np.isfinite(values)
    total = np.where(known, values, 0).sum(axis=0)
    return np.divide(total, known.sum(axis=0), out=np.full(total.shape, np.nan), where=known.any(axis=0))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Scale ranks to 0–1, with ties averaged; NaN stays."""
    from scipy.stats import rankdata

    known = np.isfinite(values)
    ranks = np.full(len(values), np.nan)
    # Sums over spots in another order round differently, which must not decide between equal genes.
    ranks[known] = rankdata(tie_groups(values[known], _TIE)) - 1
    return ranks / max(int(known.sum()) - 1, 1)


def enrich(
    ranking: pd.Series, gene_sets: Mapping[str, Iterable[str]], *, seed: int, n_permutations: int = 1000
) -> pd.DataFrame:
    """Compute pre-ranked gene set enrichment with gseapy.

    The ranking is centred at its mean, so that sets collect at either end; genes with equal values are sorted by
    name. The random sets that scores are compared with are shared by sets of one size, and p-values are refined by the
    multilevel procedure of fgsea: a tenth of the time of permuting for each set, for the same NES.

    Parameters
    ----------
    ranking
        Score of each gene, indexed by name; NaN is left out. See :func:`img2gene.pathways.rank_genes`.
    gene_sets
        Genes of each set, named as in ``ranking``.
    seed
        Seed of the random sets.
    n_permutations
        Random sets that normalise the score, 100 or more.

    Returns
    -------
    One row per set, by falling NES, then by name: ``pathway``, ``es``, ``nes`` (enrichment score, plain and over the
    mean of random sets of the same sign), ``pval`` (at least 1e-10), ``fdr`` (Benjamini–Hochberg), ``n_genes`` (ranked
    ones), ``leading_edge`` (genes that make the score, joined by ``;``). Sets without a ranked gene, and those that
    hold all of them, are NaN.

    Raises
    ------
    Img2GeneError
        Fewer than three ranked genes, genes named twice, or too few permutations.

    References
    ----------
    Subramanian et al., "Gene set enrichment analysis", PNAS 2005; Korotkevich et al., "Fast gene set enrichment
    analysis", bioRxiv 2021; Fang, Liu & Peltz, "GSEApy", Bioinformatics 2023.

    Examples
    --------
    >>> import pandas as pd
    >>> from img2gene.pathways import enrich
    >>> ranking = pd.Series({f"G{i}": -float(i) for i in range(40)})
    >>> table = enrich(ranking, {"top": ["G0", "G2", "G3"], "low": ["G30", "G38"]}, seed=0, n_permutations=100)
    >>> table["pathway"].tolist()
    ['top', 'low']
    """
    import gseapy

    check = Arguments()
    seed = check.seed("seed", seed)
    n_permutations = check.whole("n_permutations", n_permutations, _MIN_PERMUTATIONS, _MAX_PERMUTATIONS)
    with check.collect():
        gene_sets = checked_sets(gene_sets)
    with check.collect():
        ordered = _descending(ranking)
    check.raise_all()
    places = {name: place for place, name in enumerate(ordered.index)}
    codes = {name: f"G{place}" for name, place in places.items()}
    # gseapy's draws follow the order of sets and of their genes, which must not depend on the order of the input.
    names = sorted(gene_sets)
    members = [sorted((gene for gene in gene_sets[name] if gene in codes), key=places.__getitem__) for name in names]
    coded = {f"S{i}": [codes[gene] for gene in genes] for i, genes in enumerate(members)}
    usable = {code: genes for code, genes in coded.items() if 0 < len(genes) < len(ordered)}
    if not usable:
        return _enrichment_table(names, coded, {}, ordered)
    # Codes, as gseapy changes the case of genes. Sorted already, so that equal values stay in the order of names.
    results = gseapy.prerank(
        ordered.set_axis(list(codes.values())),
        usable,
        outdir=None,
        min_size=1,
        max_size=len(ordered),
        method="multilevel",
        permutation_num=n_permutations,
        eps=_SMALLEST_P,
        ascending=None,
        threads=1,
        seed=seed,
        no_plot=True,
        verbose=False,
    ).results
    return _enrichment_table(names, coded, results, ordered)


def _descending(ranking: pd.Series) -> pd.Series:
    """Centre the ranking and sort it, falling strictly: equal genes are a millionth of a mean step apart."""
    known = _known_scores(ranking)
    twice = known.index[known.index.duplicated()]
    if len(known) < 3 or len(twice):
        raise Img2GeneError(
            f"{len(known)} genes are ranked and {len(twice)} of them named twice: rank three or more, each named once."
        )
    # Equal values are sorted by name. So is the mean, as sums in another order differ in their last digits.
    known = known.sort_index()
    ordered = (known - known.mean()).sort_values(ascending=False, kind="stable")
    step = 1e-6 * max(float(np.ptp(ordered)), 1e-6) / len(ordered)
    return ordered - step * np.arange(len(ordered)) / len(ordered)


def _known_scores(ranking: Any) -> pd.Series:
    """Convert the ranking to float64 without NaN; raise unless it is a series of numbers by gene name."""
    import pandas as pd

    if not isinstance(ranking, pd.Series):
        raise Img2GeneError(f"ranking={shown(ranking)}: expected a pandas Series of scores, indexed by gene name.")
    if not pd.api.types.is_numeric_dtype(ranking) or pd.api.types.is_complex_dtype(ranking):
        raise Img2GeneError(f"ranking has {ranking.dtype} values: expected numbers.")
    known = ranking.dropna().astype(np.float64)
    if not all(isinstance(gene, str) for gene in known.index):
        raise Img2GeneError("ranking has an index that does not hold gene names; use `ranking.set_axis(genes)`.")
    if np.isinf(known).any():
        raise Img2GeneError(f"ranking has {int(np.isinf(known).sum())} infinite scores; leave these genes out.")
    return known


def _enrichment_table(
    names: list[str], coded: dict[str, list[str]], results: Mapping[str, dict[str, Any]], ordered: pd.Series
) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for name, (code, genes) in zip(names, coded.items(), strict=True):
        result = results.get(code, {})
        leading = [str(ordered.index[int(gene[1:])]) for gene in str(result.get("lead_genes", "")).split(";") if gene]
        numbers = {key: float(result.get(key, np.nan)) for key in ("es", "nes", "pval", "fdr")}
        rows.append({"pathway": name, **numbers, "n_genes": len(genes), "leading_edge": ";".join(leading)})
    return _by_nes(pd.DataFrame(rows))


def _by_nes(table: pd.DataFrame) -> pd.DataFrame:
    order = np.lexsort([table["pathway"].to_numpy(dtype=str), -table["nes"].fillna(-np.inf).to_numpy(dtype=float)])
    return table.iloc[order].reset_index(drop=True)


def select_pathways(table: pd.DataFrame, n_top: int) -> list[str]:
    """Select the sets with the highest NES.

    Parameters
    ----------
    table
        From :func:`img2gene.pathways.enrich`.
    n_top
        Number of sets.

    Returns
    -------
    Names by falling NES, then by name; sets without NES come last.

    Examples
    --------
    >>> import pandas as pd
    >>> from img2gene.pathways import select_pathways
    >>> select_pathways(pd.DataFrame({"pathway": ["b", "a", "c"], "nes": [1.0, 1.0, 2.0]}), 2)
    ['c', 'a']
    """
    import pandas as pd

    check = Arguments()
    n_top = check.whole("n_top", n_top, 1)
    if not isinstance(table, pd.DataFrame) or list(table.columns).count("pathway") != 1 or "nes" not in table:
        check.messages.append(f"table={shown(table)}: expected a table of `img2gene.pathways.enrich`.")
    elif not pd.api.types.is_numeric_dtype(table["nes"]):
        check.messages.append(f"Column `nes` holds {table['nes'].dtype} values: expected numbers.")
    check.raise_all()
    return _by_nes(table)["pathway"].tolist()[:n_top]
