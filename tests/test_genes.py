"""Gene panels and the statistics they are ranked by."""

import numpy as np
import pytest
import scipy.sparse as sp

import img2gene as ig
from img2gene import _schema
from img2gene._errors import Img2GeneError, MissingKeyError
from img2gene._study.expression import gene_statistics
from img2gene.metrics import morans_i, neighbor_graph

RANKS = {
    "even": [3, 3, 3, 5],
    "high": [60, 61, 60, 61],
    "burst": [0, 0, 0, 40],
    "rare": [0, 0, 1, 0],
    "silent": [0, 0, 0, 0],
}


@pytest.fixture
def section(make_section):
    return make_section("S1", "P1")


@pytest.fixture
def ranked(make_section):
    """A section of four spots with known labels; every library has 10,000 counts."""
    sdata = make_section("S1", "P1", n_side=2, genes=tuple(RANKS))
    sdata["table"].X = sp.csr_matrix(np.array(list(RANKS.values()), dtype=np.float32).T)
    sdata["table"].obs["library_size"] = 1e4
    return sdata


def panel(sdata, *args, **options):
    ig.pp.select_genes(sdata, *args, **options)
    return set(sdata["table"].var_names[sdata["table"].var["panel"]])


def test_by_mean_of_the_labels(ranked):
    # mean log1p: even 1.49, high 4.11, burst .93, rare .17
    assert panel(ranked, 2) == {"high", "even"}
    assert panel(ranked, 3) == {"high", "even", "burst"}


def test_by_dispersion_of_the_counts(ranked):
    # variance / mean: even .75/3.5 = .21, high .25/60.5 = .004, burst 300/10 = 30, rare .1875/.25 = .75
    assert panel(ranked, 1, by="variable") == {"burst"}
    assert panel(ranked, 2, by="variable") == {"burst", "rare"}
    assert panel(ranked, 3, by="variable") == {"burst", "rare", "even"}


def test_rarely_detected_genes_are_not_taken(ranked):
    # burst and rare are detected in a quarter of the spots
    assert panel(ranked, 2, by="variable", min_detection=0.3) == {"even", "high"}
    assert panel(ranked, 2, by="variable", min_detection=0.25) == {"burst", "rare"}


def test_genes_that_never_vary_are_never_taken(ranked):
    with pytest.raises(Img2GeneError, match="n_genes=5: 4 of 5 genes vary and are detected in 0% of the spots"):
        ig.pp.select_genes(ranked, 5, min_detection=0)


def test_by_spatial_structure_of_the_labels(section):
    table = section["table"]
    assert panel(section, 12, by="spatial") == set(table.var_names)
    counts = np.random.default_rng(0).poisson(50, table.shape).astype(np.float32)
    counts[:, 7] = table.obsm["spatial"][:, 0]
    counts[:, 3] = table.obsm["spatial"].sum(axis=1)
    table.X = sp.csr_matrix(counts)
    table.obs["library_size"] = 1e4
    assert panel(section, 2, by="spatial") == {"G03", "G07"}


def test_only_the_named_sections_decide(make_study):
    sdata = make_study([("S1", "P"), ("S2", "Q")], embed=False)
    counts = sdata["table"].X.toarray()
    second = (sdata["table"].obs["section"] == "S2").to_numpy()
    counts[second, 11] += 9000
    sdata["table"].X, sdata["table"].obs["library_size"] = sp.csr_matrix(counts), counts.sum(axis=1)
    assert "G11" in panel(sdata, 1)
    assert _schema.read_json(sdata["table"], "panel") == {"sections": ["S1", "S2"], "by": "mean"}
    assert "G11" not in panel(sdata, 1, sections=["S1"])
    assert _schema.read_json(sdata["table"], "panel")["sections"] == ["S1"]
    assert panel(sdata, 1, sections="S2") == {"G11"}


def test_labels_of_a_layer_decide(section):
    values = np.random.default_rng(0).normal(size=section["table"].shape)
    values[:, 5] += 100
    section["table"].layers["mine"] = values
    assert panel(section, 1, layer="mine", min_detection=0) == {"G05"}


def test_a_panel_of_another_name_leaves_the_first_alone(section):
    ig.pp.select_genes(section, 4)
    ig.pp.select_genes(section, 7, key_added="wide")
    assert section["table"].var[["panel", "wide"]].sum().tolist() == [4, 7]


def test_without_inplace_nothing_is_written(section, snapshot):
    before = snapshot(section["table"])
    update = ig.pp.select_genes(section, 4, inplace=False)
    assert snapshot(section["table"]) == before
    assert update["var"]["panel"].sum() == 4


FAULTS = {
    "ranking": ({"by": "fame"}, Img2GeneError, "by='fame': expected one of mean, variable, spatial"),
    "detection": ({"min_detection": 10}, Img2GeneError, "min_detection=10: expected a number from 0 to 1"),
    "section": ({"sections": ["S9"]}, MissingKeyError, r"No section named S9 \(available: S1\)"),
    "layer": ({"layer": "x"}, Img2GeneError, r"`x` not found in `sdata\['table'\].layers`"),
    "too many": ({"n_genes": 13}, Img2GeneError, "n_genes=13: 12 of 12 genes vary"),
    "none": ({"n_genes": 0}, Img2GeneError, "n_genes=0"),
    "key": ({"key_added": "my panel"}, Img2GeneError, "key_added='my panel' cannot be stored"),
    "all at once": ({"by": "fame", "layer": "x", "sections": ["S9"]}, Img2GeneError, "(?s)^3 problems:.*fame.*`x`.*S9"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_and_leave_the_object_untouched(section, snapshot, fault):
    options, kind, message = FAULTS[fault]
    before = snapshot(section["table"])
    with pytest.raises(kind, match=message):
        ig.pp.select_genes(section, **({"n_genes": 3} | options))
    assert snapshot(section["table"]) == before


def test_counts_that_are_not_raw_are_refused(section):
    section["table"].X = section["table"].X.log1p()
    with pytest.raises(Img2GeneError, match="looks normalised or log-transformed"):
        ig.pp.select_genes(section, 3)


def test_statistics_by_hand():
    labels = np.log1p(np.array([[0.0, 2], [4, 2], [0, 2], [4, 2]]))
    positions = np.array([[0.0, 0], [0, 1], [0, 2], [0, 3]])
    found = gene_statistics(labels, np.array(["a", "a", "b", "b"]), positions)
    np.testing.assert_allclose(found["mean"], [np.log(5) / 2, np.log(3)], rtol=1e-6)
    np.testing.assert_allclose(found["variance"], [np.log(5) ** 2 / 4, 0], atol=1e-7)
    # counts 0, 4, 0, 4: variance 4, mean 2
    np.testing.assert_allclose(found["dispersion"], [2, 0], atol=1e-6)
    np.testing.assert_allclose(found["detection"], [0.5, 1])
    # two spots of opposite sign, each the other's only neighbour: −1 in both sections
    np.testing.assert_allclose(found["moran"], [-1, np.nan])


def test_moran_is_averaged_over_sections(section):
    labels = np.random.default_rng(0).normal(size=(49, 3))
    positions = section["table"].obsm["spatial"]
    sections = np.array(["a"] * 28 + ["b"] * 21)
    parts = [morans_i(labels[sections == name], neighbor_graph(positions[sections == name])) for name in "ab"]
    found = gene_statistics(labels, sections, positions)["moran"]
    np.testing.assert_allclose(found, np.mean(parts, axis=0), rtol=1e-5)
