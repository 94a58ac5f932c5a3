"""Published protocols, and those of the project, as data: what is held out, which genes, which labels."""

from __future__ import annotations

from dataclasses import dataclass, field

from img2gene._errors import MissingKeyError, near

# Labels of HEST-Benchmark; those of all other protocols are log1p(1e4 · count / library size).
LOG_COUNTS = "log1p_counts"
_TASKS = ("IDC", "PRAD", "PAAD", "SKCM", "COAD", "READ", "CCRCC", "LUNG", "LYMPH_IDC")
_HEST = tuple(f"hest:{task}" for task in _TASKS)
_CMRCNET = tuple(f"hest:{task}" for task in ("COAD", "IDC", "LYMPH_IDC", "READ", "SKCM", "PSC"))
_OWN = {"HEG-250": ("mean", 250), "HVG-50": ("variance", 50)}


@dataclass(frozen=True)
class Protocol:
    """How a cohort is divided, labelled and scored.

    Attributes
    ----------
    name, title
        Name on the command line, and what it is.
    cohorts
        Cohorts that it is for.
    groups, n_folds, test_on
        As in :func:`img2gene.tl.cross_validate`; no more folds than there are groups.
    sections
        Sections that take part; empty for all.
    within
        Whether sections of one patient may be on both sides; the result is marked.
    genes
        How many genes, by their mean in each training fold; None for the list that comes with the task.
    gene_groups
        As in :func:`img2gene.tl.evaluate`; None for the default ones.
    smooth
        Neighbours over which labels are averaged.
    layer
        Labels other than the package's own: :data:`LOG_COUNTS`, or None.
    patch_um
        Fields of view in µm; None for the default ones of :func:`img2gene.pp.extract_patches`.
    differs
        How it differs from what was published, beside the models.
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
    gene_groups: dict[str, tuple[str, int]] | None = field(default=None, hash=False)
    smooth: int = 0
    layer: str | None = None
    patch_um: tuple[float, ...] | None = None
    differs: str = ""


_PANEL = (
    "The genes are those with the highest mean in each training fold; published panels were chosen on all sections."
)
_LEAVE_ONE = ("her2st", "cscc", "mob", "synthetic")
_OF_C = ("C2", "C3", "C4", "C5", "C6")

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("lopo", "one patient left out at a time, raw labels", _LEAVE_ONE, differs=_PANEL),
        Protocol("lopo-smooth", "one patient left out at a time, 3 × 3 labels", _LEAVE_ONE, smooth=8, differs=_PANEL),
        Protocol("8-fold", "patients in eight folds, raw labels", ("stnet",), n_folds=8, differs=_PANEL),
        Protocol(
            "8-fold-smooth", "patients in eight folds, 3 × 3 labels", ("stnet",), n_folds=8, smooth=8, differs=_PANEL
        ),
        Protocol(
            "sections",
            "one section left out at a time, raw labels",
            ("liver", "lung-organoid"),
            groups="section",
            within=True,
            differs=_PANEL,
        ),
        Protocol(
            "sections-smooth",
            "one section left out at a time, smoothed labels",
            ("liver", "lung-organoid"),
            groups="section",
            within=True,
            smooth=8,
            differs=_PANEL,
        ),
        Protocol(
            "sections-of-C",
            "sections C2–C6 of patient C left out one at a time",
            ("her2st",),
            groups="section",
            sections=_OF_C,
            within=True,
            genes=1000,
            gene_groups=_OWN,
        ),
        Protocol(
            "B4-to-C3",
            "trained on B4 of patient B, scored on C3 of patient C",
            ("her2st",),
            groups="section",
            test_on=("C3",),
            sections=("B4", "C3"),
            genes=1000,
            gene_groups=_OWN,
        ),
        Protocol(
            "C-to-B4",
            "trained on C2–C6 of patient C, scored on B4 of patient B",
            ("her2st",),
            test_on=("B",),
            sections=("B4", *_OF_C),
            genes=1000,
            gene_groups=_OWN,
        ),
        Protocol(
            "cmrcnet-section",
            "CMRCNet: sections in up to five folds",
            _CMRCNET,
            groups="section",
            n_folds=5,
            within=True,
            genes=1000,
            differs="The published panel is the union of each section's 1,000 most variable genes, test sections included.",
        ),
        Protocol(
            "cmrcnet-patient",
            "the cohorts of CMRCNet, one patient left out at a time",
            _CMRCNET,
            genes=1000,
            differs="Published scores hold out sections, not patients.",
        ),
        Protocol(
            "hest-bench",
            "HEST-Benchmark: the folds and 50 genes of the task, log1p of raw counts",
            _HEST,
            groups="split",
            genes=None,
            layer=LOG_COUNTS,
            patch_um=(112.0,),
            differs="Its probe is `ridge, not centred`. Published scores are correlations over all spots of a fold, "
            "here over those of a section. The 50 genes were chosen on all sections.",
        ),
    )
}


def get(name: str) -> Protocol:
    """A protocol by its name; an unknown one lists the known ones."""
    if name not in PROTOCOLS:
        raise MissingKeyError(f"No protocol {name!r} ({near(name, PROTOCOLS)}). See --list.")
    return PROTOCOLS[name]
