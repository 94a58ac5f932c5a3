"""Pathways of a study: scored, selected within a fold, stored, read and drawn."""

import json
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import scipy.sparse as sp

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import img2gene as ig
from img2gene import _schema
from img2gene._errors import Img2GeneError, MissingKeyError
from img2gene._study.pathways import enrichment_table, fold_context, log_counts, stored_pathways
from img2gene._study.study import Study
from img2gene.pathways import aucell, ssgsea, zscore

GENES = tuple(f"G{i:02d}" for i in range(60))
# Genes 0, 3, 6, … follow the red of the image, 1, 4, 7, … its green, and 2, 5, 8, … follow nothing.
SETS = {
    "red": [f"G{i:02d}" for i in range(0, 30, 3)],
    "green": [f"G{i:02d}" for i in range(1, 30, 3)],
    "noise": [f"G{i:02d}" for i in range(2, 30, 3)],
    "more noise": [f"G{i:02d}" for i in range(32, 60, 3)],
}


@pytest.fixture(scope="module")
def wide_study(make_study):
    """Two patients whose genes follow the image, libraries of equal size; not to be changed."""
    sdata = make_study([("S1", "P"), ("S2", "P"), ("T1", "Q")], genes=GENES)
    table, rng = sdata["table"], np.random.default_rng(0)
    colours = table.obsm["X_tiny"][:, :2].astype(float)
    for rows in np.split(np.arange(147), 3):
        colours[rows] = (colours[rows] - colours[rows].mean(axis=0)) / colours[rows].std(axis=0)
    drivers = np.column_stack([colours, np.zeros(147)])
    # Genes of a library share it, so that those without a driver would follow the others: counts do not add up here.
    table.X = sp.csr_matrix(rng.poisson(60 * np.exp(0.5 * drivers[:, np.arange(60) % 3])).astype(np.float32))
    table.obs["library_size"] = 10000
    return sdata


@pytest.fixture
def cohort(wide_study, copy_of):
    return copy_of(wide_study)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def record_of(sdata, key="pathways"):
    return json.loads(sdata["table"].uns["img2gene"][key])


def context_of(sdata, sections, **changes):
    """Context of the fold that trains on ``sections``."""
    study = Study.of(sdata)
    rows = np.flatnonzero(np.isin(study.sections, sections))
    options = {"labels": None, "features": study.table.obsm["X_tiny"][rows], "seed": 0} | changes
    return fold_context(study, rows, sections=study.sections[rows], positions=study.positions[rows], **options)


def test_scores_and_record_are_written_in_one_order(cohort):
    ig.pp.score_pathways(cohort, SETS, n_top=3)
    table, record = cohort["table"], record_of(cohort)
    scores = table.obsm["pathways"]
    assert isinstance(scores, np.ndarray)
    assert scores.dtype == np.float32
    columns = {name: table.var_names.get_indexer(SETS[name]) for name in record["names"]}
    np.testing.assert_array_equal(scores, aucell(table.X, columns))
    assert record["gene_sets"] == SETS
    facts = {"method": "aucell", "organism": "human", "n_top": 3, "seed": 0, "sections": ["S1", "S2", "T1"]}
    assert {key: record[key] for key in facts} == facts


def test_pathways_that_the_image_shows_are_selected(cohort):
    ig.pp.score_pathways(cohort, SETS, n_top=2)
    record = record_of(cohort)
    assert set(record["names"]) == {"red", "green"}
    assert record["enrichment"]["pathway"][:2] == record["names"]
    assert np.isfinite(record["enrichment"]["nes"]).all()


def test_all_are_taken_where_there_are_no_more_than_asked_for(cohort):
    del cohort["table"].obsm["spatial"], cohort["table"].obsm["patch_bbox"]
    ig.pp.score_pathways(cohort, SETS, n_top=4)
    assert record_of(cohort)["names"] == list(SETS)
    assert record_of(cohort)["enrichment"] is None
    with pytest.raises(Img2GeneError, match=r"needs the positions.*obsm\[\"spatial\"\]"):
        ig.pp.score_pathways(cohort, SETS, n_top=3)


def test_other_methods_score_the_same_sets(cohort):
    table = cohort["table"]
    columns = {name: table.var_names.get_indexer(genes) for name, genes in SETS.items()}
    ig.pp.score_pathways(cohort, SETS, method="ssgsea")
    np.testing.assert_array_equal(table.obsm["pathways"], ssgsea(table.X, columns))
    ig.pp.score_pathways(cohort, SETS, method="zscore", sections="S1")
    first = np.flatnonzero(table.obs["section"].to_numpy(dtype=str) == "S1")
    labels = log_counts(table, np.arange(table.n_obs))
    np.testing.assert_array_equal(table.obsm["pathways"], zscore(labels, columns, reference=first))
    np.testing.assert_allclose(table.obsm["pathways"][first].mean(axis=0), 0, atol=1e-5)


def test_normalised_counts_are_the_labels_that_models_train_on(cohort):
    from img2gene._study.expression import labels

    rows = np.array([3, 60, 5])
    expected = labels(cohort["table"], rows, np.arange(60), layer=None)
    np.testing.assert_allclose(log_counts(cohort["table"], rows).toarray(), expected, rtol=1e-5)


def test_without_an_embedding_place_alone_ranks_and_the_log_says_so(cohort, caplog):
    del cohort["table"].obsm["X_tiny"]
    caplog.set_level("INFO", logger="img2gene")
    ig.pp.score_pathways(cohort, SETS, n_top=2)
    assert "ranked by spatial variability alone" in caplog.text
    assert set(record_of(cohort)["names"]) == {"red", "green"}
    with pytest.raises(MissingKeyError, match="`X_tiny` not found"):
        ig.pp.score_pathways(cohort, SETS, n_top=2, encoder="tiny")


def test_only_the_named_sections_select(cohort):
    table = cohort["table"]
    ig.pp.score_pathways(cohort, SETS, n_top=2, sections=["S1", "S2"])
    before = record_of(cohort)
    outside = np.flatnonzero(table.obs["section"].to_numpy(dtype=str) == "T1")
    counts = table.X.toarray()
    counts[outside] = np.random.default_rng(0).permutation(counts[outside].T).T
    table.X = sp.csr_matrix(counts)
    ig.pp.score_pathways(cohort, SETS, n_top=2, sections=["S1", "S2"])
    assert record_of(cohort) == before
    assert before["sections"] == ["S1", "S2"]


def test_the_seed_repeats_the_selection(cohort):
    one, two, other = (
        ig.pp.score_pathways(cohort, SETS, n_top=2, seed=seed, inplace=False)["uns"]["pathways"] for seed in (1, 1, 2)
    )
    assert one == two
    assert one["enrichment"]["nes"] != other["enrichment"]["nes"]


def test_empty_spots_are_nan_and_do_not_select(cohort):
    table = cohort["table"]
    counts = table.X.toarray()
    counts[[4, 70]] = 0
    table.X = sp.csr_matrix(counts)
    table.obs["library_size"] = counts.sum(axis=1)
    for method in ("aucell", "zscore"):
        ig.pp.score_pathways(cohort, SETS, n_top=2, method=method)
        empty = np.isnan(table.obsm["pathways"]).all(axis=1)
        np.testing.assert_array_equal(np.flatnonzero(empty), [4, 70])
        assert np.isfinite(table.obsm["pathways"][~empty]).all()
        assert np.isnan(context_of(cohort, ["S1", "S2"]).scores).any(axis=1).sum() == 2


def test_a_pathway_that_no_training_spot_has_a_score_of_is_left_out_of_the_context(cohort, caplog):
    table = cohort["table"]
    counts = table.X.toarray()
    counts[np.ix_(table.obs["section"].to_numpy(dtype=str) != "T1", [int(name[1:]) for name in SETS["noise"]])] = 7
    table.X = sp.csr_matrix(counts)
    ig.pp.score_pathways(cohort, SETS, method="zscore")
    context = context_of(cohort, ["S1", "S2"])
    assert context.names == list(context.gene_sets) == ["red", "green", "more noise"]
    assert np.isfinite(context.scores).all()
    assert context.scores.shape == (98, 3)
    assert "left out pathways whose genes do not vary in the training spots: noise" in caplog.text


def test_sets_of_ensembl_ids_and_of_mice_are_found(cohort, caplog):
    table = cohort["table"]
    table.var["gene_ids"] = [f"ENSMUSG{i:05d}.2" for i in range(60)]
    ig.pp.score_pathways(cohort, {"a": [f"ENSMUSG{i:05d}" for i in range(6)]})
    assert record_of(cohort)["gene_sets"] == {"a": list(GENES[:6])}
    assert record_of(cohort)["organism"] == "mouse"
    table.var["other"] = [f"name{i}" for i in range(60)]
    ig.pp.score_pathways(cohort, {"a": [f"name{i}" for i in range(6)]}, gene_ids="other")
    assert record_of(cohort)["gene_sets"] == {"a": list(GENES[:6])}


def test_the_organism_is_told_by_the_genes(make_section):
    genes = ("Col1a1", "Col1a2", "Col3a1", "Dcn", "Lum", "Actb")
    sdata = make_section("S1", "P1", genes=genes)
    ig.pp.score_pathways(sdata)
    assert record_of(sdata)["organism"] == "mouse"
    assert record_of(sdata)["names"] == ["fibroblast"]
    assert ig.get.pathways(sdata).iloc[0]["genes"] == ";".join(genes[:5])


def test_without_inplace_nothing_is_written(cohort, snapshot):
    before = snapshot(cohort["table"])
    update = ig.pp.score_pathways(cohort, SETS, inplace=False)
    assert snapshot(cohort["table"]) == before
    assert update["obsm"]["pathways"].shape == (147, 4)


FAULTS = {
    "method": ({"method": "magic"}, Img2GeneError, "method='magic': expected one of aucell, ssgsea, zscore"),
    "organism": ({"organism": "yeast"}, Img2GeneError, "organism='yeast': expected one of auto, human, mouse"),
    "number": ({"n_top": 0}, Img2GeneError, "n_top=0: expected a whole number, 1 or more"),
    "fraction": ({"n_top": 2.5}, Img2GeneError, "n_top=2.5: expected a whole number, 1 or more"),
    "text": ({"min_genes": "2"}, Img2GeneError, "min_genes='2': expected a whole number, 1 or more"),
    "encoder, with nothing to select": ({"encoder": "nope"}, MissingKeyError, "nope"),
    "section": ({"sections": ["S9"]}, MissingKeyError, "No section named S9"),
    "column": ({"gene_ids": "nope"}, MissingKeyError, r"`nope` not found in `sdata\['table'\].var`"),
    "key": ({"key_added": "my sets"}, Img2GeneError, "key_added='my sets' cannot be stored"),
    "foreign key": ({"key_added": "encoder"}, Img2GeneError, "'encoder' would overwrite something other"),
    "positions": ({"key_added": "spatial"}, Img2GeneError, "'spatial' would overwrite something other"),
    "overlap": ({"gene_sets": "tissue"}, Img2GeneError, "No gene set has 5 measured genes.*EPCAM.*G00"),
    "all at once": ({"method": "x", "sections": ["S9"], "gene_ids": "y"}, Img2GeneError, "(?s)^3 problems:.*x.*S9.*y"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_and_leave_the_object_untouched(cohort, snapshot, fault):
    options, kind, message = FAULTS[fault]
    before = snapshot(cohort["table"])
    with pytest.raises(kind, match=message):
        ig.pp.score_pathways(cohort, **({"gene_sets": SETS} | options))
    assert snapshot(cohort["table"]) == before


def test_counts_that_are_not_raw_are_refused(cohort):
    cohort["table"].X = cohort["table"].X.log1p()
    with pytest.raises(Img2GeneError, match="looks normalised or log-transformed"):
        ig.pp.score_pathways(cohort, SETS)


# Within a fold


def test_a_table_without_pathways_has_no_context(cohort):
    assert stored_pathways(Study.of(cohort)) is None
    assert context_of(cohort, ["S1"]) is None


@pytest.mark.parametrize("method", ["aucell", "zscore"])
def test_a_fold_sees_its_training_rows_only(cohort, method):
    table = cohort["table"]
    ig.pp.score_pathways(cohort, SETS, n_top=2, method=method)
    before = context_of(cohort, ["S1", "S2"])
    rows = table.obs["section"].to_numpy(dtype=str) == "T1"
    counts = table.X.toarray()
    counts[rows] = np.random.default_rng(1).poisson(300, (rows.sum(), 60))
    table.X = sp.csr_matrix(counts)
    table.obs.loc[rows, "library_size"] = counts[rows].sum(axis=1)
    table.obsm["X_tiny"][rows] = 0
    ig.pp.score_pathways(cohort, SETS, n_top=2, method=method, sections="T1")
    after = context_of(cohort, ["S1", "S2"])
    assert set(after.names) == {"red", "green"}
    assert after.names == before.names
    np.testing.assert_array_equal(after.scores, before.scores)
    assert after.enrichment.equals(before.enrichment)


def test_a_fold_selects_anew_whatever_is_stored(cohort):
    table = cohort["table"]
    rows = table.obs["section"].to_numpy(dtype=str) == "T1"
    counts = table.X.toarray()
    # In one patient the noise of the others follows the image instead.
    counts[np.ix_(rows, range(2, 60, 3))], counts[np.ix_(rows, range(0, 60, 3))] = (
        counts[np.ix_(rows, range(0, 60, 3))],
        counts[np.ix_(rows, range(2, 60, 3))],
    )
    table.X = sp.csr_matrix(counts)
    ig.pp.score_pathways(cohort, SETS, n_top=2, sections="T1")
    assert "red" not in record_of(cohort)["names"]
    context = context_of(cohort, ["S1", "S2"])
    assert set(context.names) == {"red", "green"}
    assert context.scores.shape == (98, 2)
    assert context.gene_sets == {name: SETS[name] for name in context.names}
    everything = context_of(cohort, ["S1", "S2"], labels=log_counts(table, np.arange(98)).toarray())
    assert everything.names == context.names


def test_a_fold_takes_all_where_there_is_nothing_to_select(cohort):
    ig.pp.score_pathways(cohort, SETS)
    context = context_of(cohort, ["T1"], features=None)
    assert context.names == list(SETS)
    assert context.enrichment is None
    np.testing.assert_array_equal(context.scores, cohort["table"].obsm["pathways"][98:])


def test_a_fold_refuses_labels_of_a_panel(cohort):
    ig.pp.score_pathways(cohort, SETS, n_top=2)
    with pytest.raises(Img2GeneError, match=r"all genes: labels have shape \(49, 3\), expected \(49, 60\)"):
        context_of(cohort, ["T1"], labels=np.zeros((49, 3), dtype=np.float32))


def test_a_record_that_no_longer_fits_is_refused(cohort):
    ig.pp.score_pathways(cohort, SETS)
    fewer = SimpleNamespace(tables={"table": cohort["table"][:, 1:].copy()})
    with pytest.raises(Img2GeneError, match="1 genes of the pathways are no longer in the table: G00.*score_pathways"):
        stored_pathways(Study(fewer))
    cohort["table"].obsm["pathways"] = np.zeros((147, 3), dtype=np.float32)
    with pytest.raises(Img2GeneError, match="does not hold the 4 pathways of its record"):
        stored_pathways(Study.of(cohort))


def test_sections_that_were_scored_apart_have_to_be_scored_again(make_section):
    parts = [make_section(name, name, genes=GENES, seed=seed) for seed, name in enumerate("AB")]
    for part, chosen in zip(parts, (["red", "green"], ["green", "noise"]), strict=True):
        ig.pp.score_pathways(part, {name: SETS[name] for name in chosen})
    joined = ig.io.concat_sections(parts)
    with pytest.raises(Img2GeneError, match="Sections B were joined after pathways were scored.*score_pathways"):
        ig.get.pathways(joined)
    ig.pp.score_pathways(joined, SETS)
    assert ig.get.pathways(joined)["selected"].all()


# Storing and reading


def test_pathways_survive_a_store(cohort, tmp_path):
    from spatialdata import read_zarr

    table = cohort["table"]
    counts = table.X.toarray()
    counts[4] = 0
    table.X = sp.csr_matrix(counts)
    ig.pp.score_pathways(cohort, SETS, n_top=2)
    cohort.write(tmp_path / "study.zarr")
    back = read_zarr(tmp_path / "study.zarr")
    np.testing.assert_array_equal(back["table"].obsm["pathways"], table.obsm["pathways"])
    assert stored_pathways(Study.of(back)) == stored_pathways(Study.of(cohort))
    assert ig.get.pathways(back).equals(ig.get.pathways(cohort))
    before, after = (context_of(sdata, ["S1", "S2"]) for sdata in (cohort, back))
    assert before.names == after.names


def test_get_tells_what_was_matched_and_selected(cohort):
    ig.pp.score_pathways(cohort, {**SETS, "tiny": ["G00", "X"]}, n_top=2)
    found = ig.get.pathways(cohort)
    assert list(found) == [
        *("pathway", "selected", "kept", "n_genes", "n_matched", "fraction", "genes"),
        *("es", "nes", "pval", "fdr", "leading_edge"),
    ]
    assert found["pathway"].tolist()[:2] == record_of(cohort)["names"]
    assert found["selected"].tolist() == [True, True, False, False, False]
    last = found.iloc[-1]
    assert (last["pathway"], last["kept"], last["n_matched"], last["fraction"]) == ("tiny", False, 1, 0.5)
    assert np.isnan(last["nes"])
    assert (np.diff(found["nes"][:4]) <= 0).all()
    assert enrichment_table(Study.of(cohort))["pathway"].tolist() == found["pathway"].tolist()[:4]
    assert set(ig.get.pathways(cohort)["pathway"]) == {*SETS, "tiny"}


def test_get_says_what_is_missing(cohort):
    with pytest.raises(MissingKeyError, match="`pathways` not found.*score_pathways. first"):
        ig.get.pathways(cohort)
    ig.pp.score_pathways(cohort, SETS, key_added="mine")
    assert ig.get.pathways(cohort, key="mine")["selected"].all()
    assert ig.get.pathways(cohort, key="mine")["nes"].isna().all()
    assert _schema.PATHWAYS not in cohort["table"].obsm


# Drawing


def panels(figure):
    return [ax for ax in figure.axes if ax.get_title()]


def test_maps_show_the_scores_over_the_tissue(cohort, snapshot):
    ig.pp.score_pathways(cohort, SETS)
    table = cohort["table"]
    before = snapshot(table)
    figure = ig.pl.pathways(cohort, ["noise", "red"], sections=["T1", "S1"])
    assert [ax.get_title() for ax in panels(figure)] == ["T1  noise", "T1  red", "S1  noise", "S1  red"]
    rows = table.obs["section"].to_numpy(dtype=str) == "T1"
    shown = panels(figure)[1].collections[0]
    np.testing.assert_allclose(shown.get_array(), table.obsm["pathways"][rows, 0])
    assert shown.get_clim() == panels(figure)[3].collections[0].get_clim()
    assert snapshot(table) == before
    assert len(panels(ig.pl.pathways(cohort))) == 12


def test_bars_show_nes_and_mark_the_fdr(cohort):
    ig.pp.score_pathways(cohort, SETS, n_top=2)
    table = enrichment_table(Study.of(cohort))
    limit = float(table["fdr"].iloc[0])
    ax = plt.subplots()[1]
    assert ig.pl.pathways(cohort, kind="enrichment", ax=ax, max_fdr=limit) is ax.figure
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches], table["nes"])
    assert [label.get_text() for label in ax.get_yticklabels()] == table["pathway"].tolist()
    assert [text.get_text() == " *" for text in ax.texts] == (table["fdr"] <= limit).tolist()
    assert ax.yaxis_inverted()
    few = ig.pl.pathways(cohort, ["noise"], kind="enrichment").axes[0]
    assert [label.get_text() for label in few.get_yticklabels()] == ["noise"]


def test_plots_name_what_is_missing(cohort):
    with pytest.raises(MissingKeyError, match="`pathways` not found"):
        ig.pl.pathways(cohort)
    ig.pp.score_pathways(cohort, SETS)
    with pytest.raises(MissingKeyError, match=r"No pathway named blue \(available: red, green, noise, more noise\)"):
        ig.pl.pathways(cohort, "blue")
    with pytest.raises(
        MissingKeyError, match=r"^Name at least one pathway \(available: red, green, noise, more noise\)"
    ):
        ig.pl.pathways(cohort, [])
    with pytest.raises(MissingKeyError, match=r"^Name at least one section \(available: S1"):
        ig.pl.pathways(cohort, "red", sections=[])
    with pytest.raises(Img2GeneError, match="kind='pie': expected one of maps, enrichment, contribution"):
        ig.pl.pathways(cohort, kind="pie")
    with pytest.raises(Img2GeneError, match=r"All 4 pathways were taken \(n_top=50\).*fewer than 4"):
        ig.pl.pathways(cohort, kind="enrichment")
    with pytest.raises(Img2GeneError, match="`ax` takes one map, but 2 pathways in 1 sections"):
        ig.pl.pathways(cohort, ["red", "green"], sections="S1", ax=plt.subplots()[1])
