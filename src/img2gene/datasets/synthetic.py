"""Draw synthetic H&E-like sections and counts from a stated model, so that the truth is known."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from img2gene.datasets import _counts
from img2gene.datasets._genes import DOMAINS, GROUPS, SYMBOLS
from img2gene.datasets._histology import STAIN_FIELD_EFFECT, Stain, draw_stain, render
from img2gene.datasets._parameters import PITCH_UM, SPOT_UM, CohortParameters
from img2gene.datasets._tissue import Tissue, draw_composition, draw_tissue, spot_mean
from img2gene.settings import tqdm_bar

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)


def synthetic_cohort(
    n_patients: int = 4,
    n_sections: int = 2,
    n_spots: int = 150,
    n_genes: int | None = None,
    *,
    seed: int = 0,
    signal: float = 1.0,
    dropout: float = 0.1,
    depth: float = 3000.0,
    batch: float = 0.25,
    confounding: float = 0.0,
    confounded_patients: Sequence[str] | None = None,
    mpp: float = 0.65,
) -> SpatialData:
    r"""Draw a study of H&E-like sections whose expression is known.

    Every section is a piece of tissue with six domains *k* (tumour, stroma, immune, adipose, normal epithelium,
    necrosis), a hypoxia gradient *h* and a stain field *c*. All three are smooth random fields, and the image shows all
    three: domains differ in nuclei, texture and colour; nuclei grow larger and sparser as *h* rises; eosin is
    multiplied by exp(0.22 c). Spots are 55 µm wide in a hexagonal array of pitch 100 µm, as on Visium.

    Let :math:`f_{sk}` be the share of domain *k* in spot *s*, and :math:`h_s` and :math:`c_s` the means of the fields
    over the spot. Gene *g* then has the log-rate

    .. math:: \eta_{sg} = \beta_g + \mathrm{signal} \cdot \Bigl(\sum_k f_{sk} \Delta_{gk}
              + \gamma_g (h_s - \tfrac12)\Bigr) \qquad (1)

    and ``layers["truth"]`` is :math:`\log(1 + 10^4 \, \mathrm{softmax}_g(\eta_{sg}))`: the natural logarithm of the
    expected counts scaled to 10,000 per spot, without batch effects, confounding, dropout and sampling noise. The
    counts of a spot of patient *p* are

    .. math::
        \mu_{sg} &= L_s \, \mathrm{softmax}_g\bigl(\eta_{sg} + b_{pg} + \mathrm{confounding} \cdot \kappa_g c_s\bigr) \\
        X_{sg} &\sim \mathrm{Bernoulli}(1 - \mathrm{dropout}) \cdot \mathrm{NB}(\mu_{sg}, \theta_g)

    with variance :math:`\mu + \mu^2 / \theta_g` of the negative binomial, :math:`\theta_g` uniform on 4–16,
    :math:`\log L_s` normal with mean :math:`\log \mathrm{depth}` and SD 0.35, and :math:`b_{pg}` normal with mean 0 and
    SD ``batch``. Markers have :math:`\Delta` about 2.4 in their own domain and 0 elsewhere; :math:`\gamma` is about 2.4
    for hypoxia genes and −2.2 for genes of the cell cycle, which also have :math:`\Delta = 1` in tumour; housekeeping
    and noise genes have neither. :math:`\kappa` is 0.6 for one gene in five and 0 for the rest. Patients that are not
    confounded have no confounding term.

    Parameters
    ----------
    n_patients
        Number of patients, 1–1000. They are named ``P1``, ``P2``, … Patients differ in stain (dye vectors,
        concentrations, lamp), in their mix of domains and in their batch effect.
    n_sections
        Sections per patient, 1–100. They are named ``P1_S1``, ``P1_S2``, …
    n_spots
        Spots in every section, 10–5000. The tissue grows with this number.
    n_genes
        Number of genes, 10–298, from the start of a fixed list that alternates between marker groups. None takes all.
    seed
        Seed of all random numbers, at least 0. The same arguments give the same study. More patients or sections
        leave the existing sections unchanged. The only exception: with ``confounding`` above 0 and
        ``confounded_patients=None``, the last patient of the smaller study becomes confounded in the larger one.
    signal
        Factor of all effects of tissue on expression, 0–5. At 0, expression does not depend on the tissue. The image
        does not depend on ``signal``.
    dropout
        Probability that a count is lost, 0–0.95.
    depth
        Median of the expected counts per spot before dropout, 10–1e6.
    batch
        SD of the patients' batch effects on the log-rate, 0–2.
    confounding
        How strongly the stain field drives the confounded genes, 0–1. At 0, stain carries no information about
        expression except through the patient's batch effect. Above 0, models that learn expression from eosin fail in
        the patients that are not confounded.
    confounded_patients
        Names of the patients in which the stain field drives expression. None means all but the last.
    mpp
        Microns per pixel of the images, 0.25–2.

    Returns
    -------
    SpatialData with ``images["P1_S1_image"]`` (uint8), ``shapes["P1_S1_spots"]`` (circles, in pixels) for every section
    and one ``tables["table"]`` (``n_obs = n_patients · n_sections · n_spots``):

    - ``X``: raw counts, CSR float32; ``layers["truth"]``: float32, see above
    - ``obs``: ``section``, ``patient``, ``domain`` (largest share), ``hypoxia`` (:math:`h_s`), ``confounder``
      (:math:`c_s`), ``stain`` (eosin relative to the average stain), ``expected_counts`` (:math:`L_s`),
      ``library_size``, ``array_row``, ``array_col``
    - ``obsm["domain_fractions"]``: float32 (n_obs, 6), :math:`f_{sk}` in the order of ``domains`` in
      ``uns["synthetic"]``; ``obsm["spatial"]``: centres in pixels
    - ``var``: ``group``, ``confounded``, ``baseline`` (:math:`\beta`), ``hypoxia_effect`` (:math:`\gamma`),
      ``dispersion`` (:math:`\theta`); ``varm["domain_effect"]`` (:math:`\Delta`)
    - ``uns["synthetic"]``: JSON with all arguments, ``domains`` and ``confounded_genes``

    Raises
    ------
    Img2GeneError
        An argument is out of range, or a patient is not known. The message lists all problems.

    Examples
    --------
    >>> import img2gene as ig
    >>> sdata = ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=30, n_genes=40)
    >>> sdata["table"].shape
    (60, 40)
    """
    parameters = CohortParameters(
        n_patients=n_patients,
        n_sections=n_sections,
        n_spots=n_spots,
        n_genes=len(SYMBOLS) if n_genes is None else n_genes,
        seed=seed,
        signal=signal,
        dropout=dropout,
        depth=depth,
        batch=batch,
        confounding=confounding,
        confounded_patients=confounded_patients,
        mpp=mpp,
    )
    return _draw_cohort(parameters)


@dataclass(frozen=True)
class _Patient:
    """Holds the properties that all sections of one patient share."""

    name: str
    stain: Stain
    composition: np.ndarray
    batch: np.ndarray
    confounding: float


def _draw_cohort(parameters: CohortParameters) -> SpatialData:
    from img2gene.io import concat_sections
    from img2gene.settings import settings

    # One child seed per patient, so that a study with more patients begins with the smaller study.
    gene_seed, *patient_seeds = np.random.SeedSequence(parameters.seed).spawn(parameters.n_patients + 1)
    effects = _counts.draw_effects(np.random.default_rng(gene_seed)).head(parameters.n_genes)
    sections = tqdm_bar(
        _draw_sections(parameters, effects, patient_seeds),
        total=parameters.n_patients * parameters.n_sections,
        desc="Drawing sections",
        disable=not settings.progress,
    )
    sdata = concat_sections(list(sections))
    _describe(sdata["table"], effects, parameters)
    logger.info("drew %d sections with %d spots each", len(sdata.images), parameters.n_spots)
    return sdata


def _draw_sections(
    parameters: CohortParameters, effects: _counts.GeneEffects, seeds: list[np.random.SeedSequence]
) -> Iterator[SpatialData]:
    for name, seed in zip(parameters.patients, seeds, strict=True):
        patient_seed, *section_seeds = seed.spawn(parameters.n_sections + 1)
        patient = _draw_patient(np.random.default_rng(patient_seed), name, parameters)
        for number, section_seed in enumerate(section_seeds, start=1):
            yield _draw_section(section_seed, f"{name}_S{number}", patient, effects, parameters)


def _draw_patient(rng: np.random.Generator, name: str, parameters: CohortParameters) -> _Patient:
    return _Patient(
        name=name,
        stain=draw_stain(rng),
        composition=draw_composition(rng),
        batch=parameters.batch * rng.standard_normal(len(SYMBOLS))[: parameters.n_genes],
        confounding=parameters.confounding if name in parameters.confounded else 0.0,
    )


def _draw_section(
    seed: np.random.SeedSequence,
    name: str,
    patient: _Patient,
    effects: _counts.GeneEffects,
    parameters: CohortParameters,
) -> SpatialData:
    from img2gene.io.sections import build_section

    # Separate random streams, so that no parameter of the expression changes the image.
    layout, picture, expression = (np.random.default_rng(child) for child in seed.spawn(3))
    tissue = draw_tissue(layout, parameters.n_spots, patient.composition)
    fractions = np.column_stack([spot_mean(share, tissue.spots) for share in tissue.domains])
    obs = _spot_table(tissue, fractions, name, patient)
    table = _express(expression, obs, fractions, patient, effects, parameters)
    image = render(picture, tissue, patient.stain, parameters.mpp)
    xy = tissue.spots / parameters.mpp
    return build_section(image, xy, table, section=name, patient=patient.name, mpp=parameters.mpp, spot_um=SPOT_UM)


def _spot_table(tissue: Tissue, fractions: np.ndarray, section: str, patient: _Patient) -> pd.DataFrame:
    import pandas as pd

    confounder = spot_mean(tissue.stain, tissue.spots)
    return pd.DataFrame(
        {
            "domain": pd.Categorical.from_codes(fractions.argmax(axis=1), categories=list(DOMAINS)),
            "hypoxia": spot_mean(tissue.hypoxia, tissue.spots),
            "confounder": confounder,
            "stain": patient.stain.eosin * np.exp(STAIN_FIELD_EFFECT * confounder),
            "array_row": tissue.array[:, 0],
            "array_col": tissue.array[:, 1],
        },
        index=[f"{section}_{column}x{row}" for row, column in tissue.array],
    )


def _express(
    rng: np.random.Generator,
    obs: pd.DataFrame,
    fractions: np.ndarray,
    patient: _Patient,
    effects: _counts.GeneEffects,
    parameters: CohortParameters,
) -> AnnData:
    import pandas as pd
    from anndata import AnnData

    rate = _counts.log_rate(effects, fractions, obs["hypoxia"].to_numpy(), parameters.signal)
    shift = patient.batch + patient.confounding * np.outer(obs["confounder"], effects.confounder)
    library = parameters.depth * np.exp(_counts.LIBRARY_SD * rng.standard_normal(len(obs)))
    expected = library[:, None] * _counts.shares_of(rate + shift)
    truth = np.log1p(_counts.SCALE * _counts.shares_of(rate))
    return AnnData(
        X=_counts.draw_counts(rng, expected, effects.dispersion, parameters.dropout),
        obs=obs.assign(expected_counts=library),
        var=pd.DataFrame(index=list(SYMBOLS[: parameters.n_genes])),
        layers={"truth": truth.astype(np.float32)},
        obsm={"domain_fractions": fractions.astype(np.float32)},
    )


def _describe(table: AnnData, effects: _counts.GeneEffects, parameters: CohortParameters) -> None:
    """Add the columns that describe genes, and the record of all arguments."""
    import pandas as pd

    # Added to the joined table, because joining sections would have to reconcile copies of them.
    confounded = effects.confounder > 0
    # anndata drops categories without rows when it subsets a table, and small sections may lack a domain.
    table.obs["domain"] = table.obs["domain"].cat.set_categories(list(DOMAINS))
    table.var["group"] = pd.Categorical(GROUPS[: parameters.n_genes])
    table.var["confounded"] = confounded
    table.var["baseline"] = effects.baseline
    table.var["hypoxia_effect"] = effects.hypoxia
    table.var["dispersion"] = effects.dispersion
    table.varm["domain_effect"] = effects.domain.astype(np.float32)
    record = asdict(parameters) | {"confounded_patients": parameters.confounded}
    record |= {"domains": list(DOMAINS), "confounded_genes": list(table.var_names[confounded])}
    record |= {"spot_um": SPOT_UM, "pitch_um": PITCH_UM}
    table.uns["synthetic"] = json.dumps(record, default=lambda number: number.item())
