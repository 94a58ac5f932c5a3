"""Training and prediction on a study with planted signal, and every input that is refused."""

import dataclasses

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import img2gene as ig
from img2gene import _schema
from img2gene._errors import Img2GeneError, LeakageError, MissingKeyError
from img2gene._study.study import Study
from img2gene.metrics import pearson

pytestmark = [
    pytest.mark.filterwarnings("ignore:Variable names are not unique:UserWarning"),
    pytest.mark.filterwarnings("ignore:Observation names are not unique:UserWarning"),
]


def rows_of(sdata, section):
    return (sdata["table"].obs["section"] == section).to_numpy()


def log_counts(table):
    counts = table.X.toarray()
    return np.log1p(1e4 * counts / table.obs["library_size"].to_numpy()[:, None])


def weights(sdata):
    return np.asarray(sdata["table"].uns["img2gene"]["model"]["weights"]).tobytes()


def test_a_held_out_patient_is_predicted_where_the_image_tells(trained_study):
    table, held_out = trained_study["table"], rows_of(trained_study, "C1")
    scores = pearson(log_counts(table)[held_out], table.layers["img2gene"][held_out])
    driven = [i % 3 != 2 for i in range(table.n_vars)]
    assert scores[driven].min() > 0.8
    assert ig.get.model(trained_study).report["sections"] == ["A1", "A2", "B1"]


def test_predictions_are_on_the_scale_of_the_labels(trained_study):
    table = trained_study["table"]
    assert table.layers["img2gene"].dtype == np.float32
    trained = ~rows_of(trained_study, "C1")
    labels, predicted = log_counts(table)[trained], table.layers["img2gene"][trained]
    np.testing.assert_allclose(predicted.mean(axis=0), labels.mean(axis=0), rtol=1e-3)


def test_labels_of_a_fresh_library_size_by_hand(study):
    plan = ig.tl.fit(study, "ridge", genes=["G03", "G00"], inplace=False)
    assert plan.genes == ["G00", "G03"]
    expected = log_counts(study["table"])[:, [0, 3]]
    np.testing.assert_allclose(plan.statistics["mean"], expected.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(plan.statistics["variance"], expected.var(axis=0), rtol=1e-4)


def test_library_size_is_that_of_the_full_transcriptome(study, copy_of):
    genes = ["G00", "G01", "G05"]
    cut = copy_of(study)
    cut.tables["table"] = study["table"][:, genes].copy()
    for sdata in (study, cut):
        ig.tl.fit(sdata, "ridge", genes=genes, validate_on=["C"])
    assert weights(cut) == weights(study)


def test_the_same_seed_gives_the_same_bytes(study, copy_of):
    other = copy_of(study)
    for sdata in (study, other):
        ig.tl.fit(sdata, "ridge", validate_on=["C"], seed=3)
        ig.tl.predict(sdata)
    assert weights(study) == weights(other)
    assert study["table"].layers["img2gene"].tobytes() == other["table"].layers["img2gene"].tobytes()


def test_nothing_held_out_is_looked_at(study, trained_study):
    table, held_out = study["table"], rows_of(study, "C1")
    counts = table.X.toarray()
    counts[held_out] = counts[held_out][:, ::-1] * 3 + 1
    table.X = sp.csr_matrix(counts)
    table.obs.loc[held_out, "library_size"] = counts[held_out].sum(axis=1)
    table.obsm["X_tiny"][held_out] *= -5
    ig.tl.fit(study, "ridge", validate_on=["C"])
    assert weights(study) == weights(trained_study)


def test_positions_are_in_microns_whatever_the_resolution_of_the_image(study):
    # spots 20 px apart, the first one at (20, 20)
    mpp = {"A1_spots": 5.0, "A2_spots": 2.5, "B1_spots": 5.0, "C1_spots": 10.0}
    ig.pp.extract_patches(study, patch_um=60, patch_px=32, mpp=mpp)
    found = Study.of(study).positions
    for section, side in (("A1", 5.0), ("A2", 2.5), ("C1", 10.0)):
        of_section = found[rows_of(study, section)]
        np.testing.assert_allclose(of_section[0], [20 * side, 20 * side], atol=side)
        # row by row: the second spot is the next column, the eighth the next row
        np.testing.assert_allclose(of_section[[1, 7]] - of_section[0], [[0, 20 * side], [20 * side, 0]], atol=1e-9)


def test_the_number_of_genes_is_filled_from_the_training_sections(study):
    table, held_out = study["table"], rows_of(study, "C1")
    counts = table.X.toarray()
    counts[held_out, 11] += 5000
    table.X, table.obs["library_size"] = sp.csr_matrix(counts), counts.sum(axis=1)
    model = ig.tl.fit(study, "ridge", genes=3, validate_on=["C"], inplace=False)
    means = log_counts(table)[~held_out].mean(axis=0)
    assert model.genes == sorted(table.var_names[np.argsort(-means)[:3]])
    assert "G11" not in model.genes


def test_a_panel_is_taken_and_genes_that_do_not_vary_are_left_out(study):
    study["table"].var["panel"] = study["table"].var_names.isin(["G01", "G04", "G07"])
    counts = study["table"].X.toarray()
    counts[:, 4] = 0
    study["table"].X = sp.csr_matrix(counts)
    assert ig.tl.fit(study, "ridge", inplace=False).genes == ["G01", "G07"]
    with pytest.raises(Img2GeneError, match="1 genes do not vary in the training sections.*: G04"):
        ig.tl.fit(study, "ridge", genes=["G04", "G01"])


def test_labels_of_a_layer_keep_their_scale(study):
    table, held_out = study["table"], rows_of(study, "C1")
    table.layers["mine"] = (-1000 + 5 * log_counts(table)).astype(np.float32)
    ig.tl.fit(study, "ridge", layer="mine", validate_on=["C"])
    ig.tl.predict(study)
    assert ig.get.model(study).labels == {"layer": "mine", "target_sum": None}
    found = table.layers["img2gene"]
    np.testing.assert_allclose(found[~held_out].mean(axis=0), table.layers["mine"][~held_out].mean(axis=0), rtol=1e-4)
    assert (ig.tl.evaluate(study).query("model == 'ridge'")["r2"] > 0.5).sum() >= 8


def test_spots_without_a_count_do_not_train_but_are_predicted(study):
    table = study["table"]
    counts = table.X.toarray()
    counts[[0, 60, -1]] = 0
    table.X = sp.csr_matrix(counts)
    table.obs["library_size"] = counts.sum(axis=1)
    ig.tl.fit(study, "ridge", validate_on=["C"])
    report = ig.get.model(study).report
    assert (report["n_empty_spots"], report["n_spots"]) == (2, 3 * 49 - 2)
    ig.tl.predict(study)
    assert np.isfinite(table.layers["img2gene"]).all()
    assert set(ig.tl.evaluate(study)["n_spots"]) == {48}


def test_an_allowed_leak_marks_the_result(study):
    ig.tl.fit(study, "ridge", groups="section", validate_on=["A2"], allow_leakage=True)
    assert ig.get.model(study).report["leakage"] == ["A"]
    ig.tl.predict(study)
    assert ig.tl.evaluate(study)["leakage"].all()
    ig.tl.fit(study, "ridge", validate_on=["C"])
    ig.tl.predict(study)
    assert not ig.tl.evaluate(study)["leakage"].any()


def set_counts(change):
    def spoil(sdata):
        counts = sdata["table"].X.toarray()
        change(counts)
        sdata["table"].X = sp.csr_matrix(counts)

    return spoil


def put(row, value):
    return set_counts(lambda counts: counts.__setitem__((row, 0), value))


def log_them(sdata):
    sdata["table"].X = sp.csr_matrix(np.log1p(sdata["table"].X.toarray()))


def rename(axis, old, new):
    def spoil(sdata):
        names = f"{axis}_names"
        setattr(sdata["table"], names, [new if name == old else name for name in getattr(sdata["table"], names)])

    return spoil


def second_embedding(sdata):
    known = _schema.read_json(sdata["table"], "encoder")
    _schema.write_json(sdata["table"], "encoder", {**known, "other": {**known["tiny"], "name": "other"}})
    sdata["table"].obsm["X_other"] = sdata["table"].obsm["X_tiny"]


def keep_one_section(sdata):
    table = sdata["table"][rows_of(sdata, "C1")].copy()
    table.uns["spatialdata_attrs"]["region"] = "C1_spots"
    sdata.tables["table"] = table


def forget_patients(sdata):
    sdata["table"].obs["patient"] = sdata["table"].obs["patient"].mask(rows_of(sdata, "B1"))


def panel_on_all(sdata):
    ig.pp.select_genes(sdata, 5)


def forget_resolution(sdata):
    patches = _schema.read_json(sdata["table"], "patches")
    for region in ("A2_spots", "C1_spots"):
        del patches["regions"][region]["mpp"]
    _schema.write_json(sdata["table"], "patches", patches)


FAULTS = {
    "no embedding": (lambda s: s["table"].obsm.pop("X_tiny"), {}, r"`X_<encoder>` not found in `sdata\['table'\].obsm` .*Run `img2gene.pp.embed_patches` first"),
    "several embeddings": (second_embedding, {}, r"Several embeddings are stored \(tiny, other\); say which with `encoder=`"),
    "embedding not stored": (None, {"encoder": "color-texture"}, r"`X_color-texture` not found in .* \(available: "),
    "encoder": (None, {"encoder": "magic"}, r"`magic` not found in `img2gene.encoders`"),
    "incomplete embedding": (lambda s: s["table"].obsm["X_tiny"].__setitem__((3, 0), np.nan), {}, "`obsm\\['X_tiny'\\]` is NaN or infinite in 1 rows"),
    "width": (lambda s: s["table"].obsm.__setitem__("X_tiny", np.ones((196, 2), np.float32)), {}, r"has shape \(196, 2\), its record says width 6"),
    "no patches": (lambda s: s["table"].obsm.pop("patch_bbox"), {}, "`patch_bbox` not found in .*Run `img2gene.pp.extract_patches` first"),
    "resolution": (forget_resolution, {}, "Microns per pixel of the regions A2_spots, C1_spots are not recorded .* run `img2gene.pp.extract_patches` again"),
    "model": (None, {"model": "forest"}, r"`forest` not found in `img2gene.models`"),
    "parameter": (None, {"alpha": 1}, "`ridge` has no parameter alpha"),
    "layer": (None, {"layer": "scaled"}, r"`scaled` not found in `sdata\['table'\].layers` \(available: none\)"),
    "gene": (None, {"genes": ["G01", "TP53", "MYC"]}, r"Genes TP53, MYC not found in .* \(available: G00, G01"),
    "gene twice": (None, {"genes": ["G01", "G01"]}, "Genes named twice: G01"),
    "no gene": (None, {"genes": []}, "`genes` is empty"),
    "too many genes": (None, {"genes": 99}, "genes=99: .*from 1 to 12, the genes of the table"),
    "groups": (None, {"groups": "donor"}, r"`donor` not found in `sdata\['table'\].obs`"),
    "patient missing": (forget_patients, {}, r"`obs\['patient'\]` is missing in 49 rows"),
    "held out": (None, {"validate_on": ["D"]}, r"validate_on=\['D'\]: no patient named D \(available: A, B, C\)"),
    "all held out": (None, {"validate_on": ["A", "B", "C"]}, "Nothing is left to train on"),
    "both sides named": (None, {"train_on": ["A", "C"], "validate_on": ["C"]}, "C: named in both `train_on` and `validate_on`"),
    "NaN counts": (put(5, np.nan), {}, r"`sdata\['table'\].X` holds 1 NaN values"),
    "negative counts": (put(5, -1), {}, "holds 1 negative values"),
    "log counts": (log_them, {}, "looks normalised or log-transformed"),
    "duplicate genes": (rename("var", "G01", "G00"), {}, r"1 duplicate genes \(G00\).*var_names_make_unique"),
    "duplicate spots": (rename("obs", "A1_1", "A1_0"), {}, r"1 duplicate spots \(A1_0\).*obs_names_make_unique"),
    "one section": (keep_one_section, {}, r"The study has one section only \(C1\)"),
    "key": (None, {"key_added": "my model"}, "key_added='my model' cannot be stored"),
    "table": (None, {"table_key": "cells"}, r"`cells` not found in `sdata.tables` \(available: table\)"),
    "patient on both sides": (None, {"groups": "section", "validate_on": ["A2"]}, "Patients A are on both sides of the split by section"),
    "panel on held out": (panel_on_all, {"validate_on": ["C"]}, "The gene panel was chosen on the held-out sections C1 too"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_and_leave_the_object_untouched(study, snapshot, fault):
    spoil, options, message = FAULTS[fault]
    if spoil:
        spoil(study)
    before = snapshot(study["table"])
    kind = LeakageError if fault in ("patient on both sides", "panel on held out") else Img2GeneError
    with pytest.raises(kind, match=message):
        ig.tl.fit(study, **({"model": "ridge"} | options))
    assert snapshot(study["table"]) == before


def test_all_problems_come_in_one_message(study):
    put(5, -1)(study)
    study["table"].obsm.pop("X_tiny")
    with pytest.raises(Img2GeneError, match=r"(?s)^4 problems:.*negative.*X_<encoder>.*no patient named D.*Genes TP53"):
        ig.tl.fit(study, "ridge", genes=["TP53"], validate_on=["D"])


def test_a_panel_chosen_on_the_training_sections_is_welcome(study):
    ig.pp.select_genes(study, 4, sections=["A1", "A2", "B1"])
    panel = study["table"].var_names[study["table"].var["panel"]].tolist()
    assert len(panel) == 4
    assert ig.tl.fit(study, "ridge", validate_on=["C"], inplace=False).genes == panel


def test_one_section_trains_only_on_request(study):
    keep_one_section(study)
    with pytest.raises(Img2GeneError, match="allow_single_section=True"):
        ig.tl.fit(study, "ridge", inplace=False)
    model = ig.tl.fit(study, "ridge", allow_single_section=True, inplace=False)
    assert model.report["fit"]["inner_folds"] == "block"


def test_not_in_place_returns_what_would_be_stored(study, snapshot):
    before = snapshot(study["table"])
    model = ig.tl.fit(study, "ridge", validate_on=["C"], inplace=False)
    predicted = ig.tl.predict(study, model, inplace=False)
    assert snapshot(study["table"]) == before
    ig.tl.fit(study, "ridge", validate_on=["C"])
    ig.tl.predict(study)
    np.testing.assert_array_equal(study["table"].layers["img2gene"], predicted.X)
    assert list(predicted.var_names) == model.genes


def test_genes_outside_the_model_are_nan_in_the_layer(study):
    ig.tl.fit(study, "ridge", genes=["G02", "G09"])
    ig.tl.predict(study, key_added="guess", model="img2gene")
    known = np.isfinite(study["table"].layers["guess"])
    assert known[:, [2, 9]].all()
    assert known.sum() == 2 * study["table"].n_obs
    assert "guess" not in study.tables


def test_genes_that_the_table_lacks_are_predicted_into_a_table_of_their_own(study):
    model = ig.tl.fit(study, "ridge", inplace=False)
    study.tables["table"] = study["table"][:, :8].copy()
    ig.tl.predict(study, model)
    found = study["img2gene"]
    assert list(found.var_names) == model.genes
    np.testing.assert_array_equal(found.X[:, :8], study["table"].layers["img2gene"])
    assert found.uns["spatialdata_attrs"] == study["table"].uns["spatialdata_attrs"]
    pd.testing.assert_series_equal(found.obs["spot_id"], study["table"].obs["spot_id"])


def test_order_of_spots_does_not_matter(trained_study, copy_of):
    shuffled = copy_of(trained_study)
    order = np.random.default_rng(0).permutation(196)
    shuffled.tables["table"] = trained_study["table"][order].copy()
    del shuffled["table"].layers["img2gene"]
    ig.tl.predict(shuffled)
    expected = trained_study["table"].layers["img2gene"][order]
    np.testing.assert_allclose(shuffled["table"].layers["img2gene"], expected, atol=1e-5)


def test_everything_that_differs_from_the_training_embedding_is_named(trained_study, make_section):
    other = make_section("D1", "D", seed=9)
    ig.pp.extract_patches(other, patch_um=80, patch_px=40)
    ig.pp.embed_patches(other, "tiny", orientations=8)
    known = _schema.read_json(other["table"], "encoder")
    _schema.write_json(other["table"], "encoder", {"tiny": known["tiny"] | {"revision": "2"}})
    with pytest.raises(Img2GeneError) as caught:
        ig.tl.predict(other, ig.get.model(trained_study))
    trained_on = ig.get.model(trained_study).inputs["orientations"]
    for part in (
        "4 problems",
        "trained with encoder revision 1, the object has 2",
        r"fields of view (µm) [60.0], the object has [80.0]. Run `img2gene.pp.extract_patches(sdata, patch_um=(60.0,))`",
        "input size (px) 32, the object has 40",
        f"orientations {trained_on}, the object has 8. Run `img2gene.pp.embed_patches(sdata, 'tiny', orientations={trained_on})`",
    ):
        assert part in str(caught.value)
    assert "img2gene" not in other["table"].layers


def test_faults_of_a_prediction_are_named(study, snapshot, tmp_path):
    before = snapshot(study["table"])
    with pytest.raises(
        MissingKeyError, match="`img2gene` not found in `the trained models of the table` .* Run `img2gene.tl.fit`"
    ):
        ig.tl.predict(study)
    with pytest.raises(
        MissingKeyError, match="nowhere.img2gene` is neither a trained model of the table .* nor a file"
    ):
        ig.tl.predict(study, tmp_path / "nowhere.img2gene")
    with pytest.raises(Img2GeneError, match="key_added='a b' cannot be stored"):
        ig.tl.predict(study, key_added="a b")
    assert snapshot(study["table"]) == before
    model = ig.tl.fit(study, "ridge", inplace=False)
    study["table"].obsm.pop("X_tiny")
    with pytest.raises(
        MissingKeyError,
        match=r"`X_tiny` not found .* patch_um=\(60.0,\)\)` and `img2gene.pp.embed_patches\(sdata, 'tiny'\)`",
    ):
        ig.tl.predict(study, model)


def test_a_result_never_replaces_another_element(study):
    model = ig.tl.fit(study, "ridge", inplace=False)
    study.tables["table"] = study["table"][:, :8].copy()
    for name in ("A1_image", "A1_spots", "table"):
        with pytest.raises(Img2GeneError, match=f"key_added='{name}' is the name of another element"):
            ig.tl.predict(study, model, key_added=name)
        assert name not in study["table"].layers


def test_features_of_another_width_or_with_nan_are_refused(trained_study):
    model = ig.get.model(trained_study)
    with pytest.raises(Img2GeneError, match=r"Features have shape \(3, 5\); the model takes \(n_spots, 6\)"):
        model.predict(np.zeros((3, 5)), ["a"] * 3)
    with pytest.raises(Img2GeneError, match="(?s)2 problems.*1 spots have NaN.*a name for each of 3 spots"):
        model.predict(np.array([[np.nan] * 6] + [[0.0] * 6] * 2), ["a", "a"])


def test_a_slide_without_expression_is_tiled_embedded_predicted_and_plotted(trained_study, make_section):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    model = ig.get.model(trained_study)
    slide = make_section("D1", "D", seed=9)
    del slide.tables["table"]
    ig.pp.tile_slide(slide, "D1_image", tile_um=100, mpp=5, patch_um=60, patch_px=32, min_tissue=0, patient="D")
    assert slide["slide_tiles"].shape == (64, 0)
    np.testing.assert_array_equal(slide["slide_tiles"].obsm["patch_bbox"][0], [4, 4, 16, 16])
    ig.pp.embed_patches(slide, "tiny", table_key="slide_tiles")
    ig.tl.predict(slide, model, table_key="slide_tiles", key_added="expression")
    found = slide["expression"]
    assert found.shape == (64, 12)
    red = slide["slide_tiles"].obsm["X_tiny"][:, 0]
    assert np.corrcoef(found[:, "G00"].X.ravel(), red)[0, 1] < -0.8
    assert set(slide.subset(["D1_image", "slide_tiles_squares"]).tables) == {"slide_tiles", "expression"}
    plotted(ig.io.to_anndata(slide, table_key="expression"))


def test_tiles_are_predicted_by_the_model_of_the_spots(trained_study, copy_of):
    study = copy_of(trained_study)
    ig.pp.tile_slide(study, "A1_image", tile_um=100, mpp=5, patch_um=60, patch_px=32, min_tissue=0)
    with pytest.raises(Img2GeneError, match=r"embed_patches\(sdata, 'tiny', table_key='slide_tiles'\)"):
        ig.tl.predict(study, table_key="slide_tiles", key_added="img2gene")
    ig.pp.embed_patches(study, "tiny", table_key="slide_tiles")
    ig.tl.predict(study, table_key="slide_tiles")
    expected = ig.tl.predict(study, ig.get.model(study), table_key="slide_tiles", inplace=False)
    np.testing.assert_array_equal(study["img2gene"].X, expected.X)


def plotted(adata: ad.AnnData):
    """Draw a gene as a user would, and look for the spots in the figure."""
    import warnings

    import matplotlib.pyplot as plt

    squidpy = pytest.importorskip("squidpy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = squidpy.pl.spatial_scatter(adata, color="G00", library_key="section", return_ax=True)
    values = np.concatenate([part.get_array() for part in np.atleast_1d(axes)[0].collections])
    np.testing.assert_allclose(np.sort(values), np.sort(adata[:, "G00"].X.ravel()), rtol=1e-5)
    plt.close("all")


def test_a_model_tells_what_it_is(trained_study):
    model = ig.get.model(trained_study)
    assert repr(model) == "Model(ridge, 12 genes, encoder=tiny, trained on A1, A2, B1)"
    assert dataclasses.asdict(model)["labels"] == {"layer": None, "target_sum": 1e4}
    assert '"patients": [\n      "A",\n      "B"\n    ]' in model.describe()
