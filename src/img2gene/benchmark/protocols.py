"""Define the protocols: what is held out, which genes are predicted, and on which scale."""

from __future__ import annotations

from dataclasses import dataclass, field

from img2gene._errors import MissingKeyError, near

# Expression in HEST-Benchmark. All other protocols predict log1p(1e4 · count / library size).
LOG_COUNTS = "log1p_counts"
_TASKS = ("IDC", "PRAD", "PAAD", "SKCM", "COAD", "READ", "CCRCC", "LUNG", "LYMPH_IDC")
_HEST = tuple(f"hest:{task}" for task in _TASKS)
_CMRCNET = tuple(f"hest:{task}" for task in ("COAD", "IDC", "LYMPH_IDC", "READ", "SKCM", "PSC"))
_GENE_GROUPS = {"HEG-250": ("mean", 250), "HVG-50": ("variance", 50)}


@dataclass(frozen=True)
class Protocol:
    """Defines how a cohort is divided, which expression is predicted, and how it is scored.

    Attributes
    ----------
    name, title
        Name on the command line, and title in tables.
    cohorts
        Names of the cohorts to which the protocol applies.
    groups, n_folds, test_on
        As in :func:`img2gene.tl.cross_validate`. If a cohort has fewer groups than ``n_folds``, each group is a fold.
    sections
        Sections that take part. Empty means all.
    within
        Whether sections of one patient may be both in training and test. Tables mark such results.
    genes
        Number of genes with the highest mean in each training fold, or None for the gene list of the task.
    gene_groups
        As in :func:`img2gene.tl.evaluate`. None takes the default groups.
    smooth
        Number of neighbours over which expression is averaged.
    layer
        Layer with the expression to predict: :data:`LOG_COUNTS`, or None for log-normalised counts.
    patch_um
        Fields of view in µm. None takes the default of :func:`img2gene.pp.extract_patches`.
    differs
        Differences from the publication, apart from the models.
    """

    name: str
    title: str
    cohorts: tuple[str, ...]
    groups: str = "patient"
    n_folds: int | None = None
    test_on: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    within: bool = False
    genes: int | None = 250
    # Left out of the hash, because a dictionary cannot be hashed.
    gene_groups: dict[str, tuple[str, int]] | None = field(default=None, hash=False)
    smooth: int = 0
    layer: str | None = None
    patch_um: tuple[float, ...] | None = None
    differs: str = ""


_PANEL = "The genes have the highest mean in each training fold. Published panels were chosen on all sections."
_LEAVE_ONE = ("her2st", "cscc", "mob", "synthetic")
_OF_C = ("C2", "C3", "C4", "C5", "C6")

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("lopo", "one patient held out at a time, raw expression", _LEAVE_ONE, differs=_PANEL),
        Protocol(
            "lopo-smooth",
            "one patient held out at a time, expression averaged over 3 × 3 spots",
            _LEAVE_ONE,
            smooth=8,
            differs=_PANEL,
        ),
        Protocol("8-fold", "patients in eight folds, raw expression", ("stnet",), n_folds=8, differs=_PANEL),
        Protocol(
            "8-fold-smooth",
            "patients in eight folds, expression averaged over 3 × 3 spots",
            ("stnet",),
            n_folds=8,
            smooth=8,
            differs=_PANEL,
        ),
        Protocol(
            "sections",
            "one section held out at a time, raw expression",
            ("liver", "lung-organoid"),
            groups="section",
            within=True,
            differs=_PANEL,
        ),
        Protocol(
            "sections-smooth",
            "one section held out at a time, expression averaged over neighbours",
            ("liver", "lung-organoid"),
            groups="section",
            within=True,
            smooth=8,
            differs=_PANEL,
        ),
        Protocol(
            "sections-of-C",
            "sections C2–C6 of patient C, one held out at a time",
            ("her2st",),
            groups="section",
            sections=_OF_C,
            within=True,
            genes=1000,
            gene_groups=_GENE_GROUPS,
        ),
        Protocol(
            "B4-to-C3",
            "trained on B4 of patient B, scored on C3 of patient C",
            ("her2st",),
            groups="section",
            test_on=("C3",),
            sections=("B4", "C3"),
            genes=1000,
            gene_groups=_GENE_GROUPS,
        ),
        Protocol(
            "C-to-B4",
            "trained on C2–C6 of patient C, scored on B4 of patient B",
            ("her2st",),
            test_on=("B",),
            sections=("B4", *_OF_C),
            genes=1000,
            gene_groups=_GENE_GROUPS,
        ),
        Protocol(
            "cmrcnet-section",
            "CMRCNet: sections in up to five folds",
            _CMRCNET,
            groups="section",
            n_folds=5,
            within=True,
            genes=1000,
            differs="The published panel joins the 1,000 most variable genes of each section, including test sections.",
        ),
        Protocol(
            "cmrcnet-patient",
            "cohorts of CMRCNet, one patient held out at a time",
            _CMRCNET,
            genes=1000,
            differs="Published scores hold out sections instead of patients.",
        ),
        Protocol(
            "hest-bench",
            "HEST-Benchmark: the folds and 50 genes of the task, log1p of raw counts",
            _HEST,
            groups="split",
            genes=None,
            layer=LOG_COUNTS,
            patch_um=(112.0,),
            differs="The published probe is the row `ridge, not centred`. Published correlations are over all spots of "
            "a fold; correlations here are within a section. The 50 genes were chosen on all sections.",
        ),
    )
}


def get(name: str) -> Protocol:
    """Return a protocol by its name; the error for an unknown name lists the known names."""
    if name not in PROTOCOLS:
        raise MissingKeyError(f"No protocol {name!r} ({near(name, PROTOCOLS)}). See --list.")
    return PROTOCOLS[name]
