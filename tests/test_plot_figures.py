"""Every plot returns a figure that a notebook shows once, with scale bars and units; and the plots of whole studies."""

import inspect
import pickle

import matplotlib as mpl

mpl.use("Agg")
import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib_scalebar.scalebar import ScaleBar

import img2gene as ig
from img2gene import Img2GeneError, MissingKeyError, _schema

UNIT = "log1p(CP10K)"
# Uniform or diverging in lightness, so that they can be read without telling red from green.
SAFE = {"magma", "viridis", "RdBu_r"}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def predicted(trained_study, copy_of):
    sdata = copy_of(trained_study)
    ig.tl.predict(sdata)
    return sdata


def bars(figure):
    return [artist for ax in figure.axes for artist in ax.artists if isinstance(artist, ScaleBar)]


def labels(figure):
    return [ax.get_ylabel() for ax in figure.axes if ax.get_ylabel()]


@pytest.mark.parametrize("name", ig.pl.__all__)
def test_every_plot_returns_a_figure_and_has_safe_colours(name):
    signature = inspect.signature(getattr(ig.pl, name))
    assert signature.return_annotation == "Figure"
    cmap = signature.parameters.get("cmap")
    assert cmap is None or cmap.default in {*SAFE, None}


def test_maps_have_scale_bars_in_microns_and_units(predicted):
    figure = ig.pl.prediction(predicted, "G00", sections=["C1", "A1"], uncertainty=True)
    assert type(figure) is Figure
    assert labels(figure) == 2 * [UNIT, f"predictive SD, {UNIT}", f"measured − predicted, {UNIT}"]
    assert len(bars(figure)) == 8
    table, panel = predicted["table"], figure.axes[0]
    rows = (table.obs["section"] == "C1").to_numpy()
    um = table.obsm["spatial"][rows] * 5.0
    drawn = np.asarray(panel.collections[0].get_offsets())
    # The bar says how many µm a unit of the axes is long.
    scale = np.ptp(um, axis=0) / np.ptp(drawn, axis=0)
    np.testing.assert_allclose(scale, bars(figure)[0].dx, rtol=1e-6)
    assert bars(figure)[0].units == "um"


def test_without_microns_a_map_has_no_scale_bar(predicted):
    del predicted["table"].uns["img2gene"]["patches"]
    predicted["table"].uns["img2gene"].pop("sections", None)
    assert bars(ig.pl.prediction(predicted, "G00", sections="C1", residual=False)) == []


def test_kept_predictions_lie_in_microns_and_keep_their_unit(study):
    result = ig.tl.cross_validate(study, ["mean"], keep_predictions=True, n_permutations=0)
    kept = result.predictions["mean"]
    figure = ig.pl.prediction(kept, "G00", sections="C1", residual=False)
    (first, *_), panel = bars(figure), figure.axes[0]
    rows = (kept.obs["section"] == "C1").to_numpy()
    drawn = np.asarray(panel.collections[0].get_offsets())
    np.testing.assert_allclose(np.ptp(kept.obsm["spatial"][rows], axis=0) / np.ptp(drawn, axis=0), first.dx, rtol=1e-6)
    assert labels(figure) == [UNIT]


def test_labels_of_a_layer_are_named_even_if_the_model_is_a_file(study, tmp_path):
    study["table"].layers["scaled"] = study["table"].X.toarray() / 100
    model = ig.tl.fit(study, "ridge", layer="scaled", validate_on=["C"], inplace=False)
    ig.tl.predict(study, model)
    figure = ig.pl.prediction(study, "G00", sections="C1")
    assert labels(figure) == ["layer 'scaled'", "measured − predicted, layer 'scaled'"]
    rows = (study["table"].obs["section"] == "C1").to_numpy()
    measured = np.asarray(figure.axes[0].collections[0].get_array())
    np.testing.assert_allclose(measured, study["table"].layers["scaled"][rows, 0], rtol=1e-5)


def test_predictions_of_another_package_have_no_unit(study):
    study["table"].layers["theirs"] = np.ones(study["table"].shape, dtype=np.float32)
    assert labels(ig.pl.prediction(study, "G00", sections="C1", key="theirs", residual=False)) == ["expression"]


def test_names_of_fifty_genes_can_be_read():
    genes = [f"GENE{i}" for i in range(50)]
    rng = np.random.default_rng(0)
    scores = pd.DataFrame({"model": "ridge", "section": "A", "gene": genes, "pcc": rng.uniform(-1, 1, 50)})
    (heat, _) = ig.pl.score_heatmap(scores).axes
    fonts = {tick.get_fontsize() for tick in heat.get_yticklabels()}
    height = heat.get_figure().get_figheight() * 72 / 50
    assert min(fonts) >= 6.5 and max(fonts) < height


def test_genes_of_a_correlation_get_panels_in_which_names_can_be_read(study):
    from img2gene.pl.correlation import _readable_side

    side = _readable_side(50, 4.2)
    assert 0.8 * 72 * side / 50 == pytest.approx(6.5)
    assert _readable_side(12, 4.2) == 4.2 == _readable_side(500, 4.2)


def test_density_counts_every_spot_once_and_states_the_scores(predicted):
    figure = ig.pl.measured_vs_predicted(predicted, ["G00", "G01"], sections=["C1"])
    table = predicted["table"]
    rows = (table.obs["section"] == "C1").to_numpy()
    first = figure.axes[0]
    assert first.collections[0].get_array().sum() == rows.sum()
    truth = np.log1p(1e4 * table.X.toarray()[rows, 0] / table.obs["library_size"].to_numpy()[rows])
    values = table.layers["img2gene"][rows, 0].astype(float)
    pcc, slope = np.corrcoef(truth, values)[0, 1], np.polyfit(values, truth, 1)[0]
    assert first.get_title() == f"G00\nPCC {pcc:.2f}, slope {slope:.2f}"
    assert (figure.get_supxlabel(), figure.get_supylabel()) == (f"predicted, {UNIT}", f"measured, {UNIT}")
    # Both panels share one scale.
    assert figure.axes[0].collections[0].norm is figure.axes[1].collections[0].norm or (
        figure.axes[0].collections[0].get_clim() == figure.axes[1].collections[0].get_clim()
    )
    together = ig.pl.measured_vs_predicted(predicted, sections=["C1"]).axes[0]
    assert together.collections[0].get_array().sum() == rows.sum() * table.n_vars
    assert "spots × genes in a hexagon" in labels(together.get_figure())


def test_density_is_drawn_on_the_axes_of_a_larger_figure(predicted):
    figure, axes = plt.subplots(1, 2)
    assert ig.pl.measured_vs_predicted(predicted, "G00", sections=["C1"], ax=axes[1]) is figure
    alone = ig.pl.measured_vs_predicted(predicted, "G00", sections=["C1"]).axes[0]
    assert axes[1].get_title() == alone.get_title() and axes[0].get_title() == ""
    assert (axes[1].get_xlabel(), axes[1].get_ylabel()) == (f"predicted, {UNIT}", f"measured, {UNIT}")
    np.testing.assert_array_equal(axes[1].collections[0].get_array(), alone.collections[0].get_array())


def test_density_names_what_cannot_be_drawn(predicted):
    with pytest.raises(Img2GeneError, match="ax: 2 genes need as many panels"):
        ig.pl.measured_vs_predicted(predicted, ["G00", "G01"], ax=plt.subplots()[1])
    with pytest.raises(MissingKeyError, match="G99"):
        ig.pl.measured_vs_predicted(predicted, "G99")
    with pytest.raises(Img2GeneError, match="at most 60 panels"):
        ig.pl.measured_vs_predicted(predicted, [f"G{i}" for i in range(61)])
    unmeasured = ad.AnnData(np.ones((4, 2)), obs={"section": ["A"] * 4})
    with pytest.raises(Img2GeneError, match="No measured spot in the sections A"):
        ig.pl.measured_vs_predicted(unmeasured, "0")


def heat(**options):
    scores = pd.DataFrame(
        {
            "model": ["ridge"] * 6 + ["mean"] * 6,
            "section": ["A", "A", "A", "B", "B", "B"] * 2,
            "gene": ["low", "high", "none"] * 4,
            "pcc": [0.1, 0.5, np.nan, -0.2, 0.7, np.nan] + [0.0] * 6,
            "mse": [1.0, 2.0, 3.0, 1.0, 2.0, 3.0] * 2,
            "bias": [-3.0, 0.1, 1.0, 1.0, 0.1, 1.0] * 2,
            "HVG": [True, False, False] * 4,
        }
    )
    return ig.pl.score_heatmap(scores, **options)


def test_heat_map_holds_the_score_of_each_gene_in_each_section():
    figure = heat()
    panel, bar = figure.axes
    np.testing.assert_array_equal(panel.images[0].get_array().filled(np.nan), [[0.5, 0.7], [0.1, -0.2], [np.nan] * 2])
    assert [tick.get_text() for tick in panel.get_yticklabels()] == ["high", "low", "none"]
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["A", "B"]
    assert panel.images[0].get_clim() == (-0.7, 0.7)
    assert bar.get_ylabel() == "PCC (grey: undefined)"


@pytest.mark.parametrize(
    ("options", "genes"),
    [
        ({"metric": "mse"}, ["low", "high", "none"]),
        # Levels that are off by least come first, in whichever direction.
        ({"metric": "bias"}, ["high", "none", "low"]),
        ({"genes": "HVG"}, ["low"]),
        ({"genes": ["none", "high"]}, ["high", "none"]),
        ({"n_genes": 1}, ["high"]),
        ({"model": "mean", "metric": "mse", "n_genes": 2}, ["low", "high"]),
    ],
)
def test_heat_map_orders_and_chooses_genes(options, genes):
    panel = heat(**options).axes[0]
    assert [tick.get_text() for tick in panel.get_yticklabels()] == genes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "accuracy"}, "'accuracy' is not a number"),
        ({"model": "best"}, "`best` not found.*ridge, mean"),
        ({"genes": ["high", "absent"]}, "`absent` not found"),
        ({"genes": "none"}, "No gene has a defined 'pcc'"),
        ({"n_genes": 0}, "n_genes=0"),
    ],
)
def test_heat_map_names_what_cannot_be_drawn(options, message):
    with pytest.raises(Img2GeneError, match=message):
        heat(**options)


def test_umap_draws_the_spots_of_the_embedding(study, monkeypatch, snapshot):
    import scanpy as sc

    seen = {}

    def places(spots, **options):
        seen["features"] = np.asarray(spots.X)
        spots.obsm["X_umap"] = np.column_stack([np.arange(spots.n_obs), np.zeros(spots.n_obs)])

    # Laying out a graph takes numba half a minute to compile, and is scanpy's own.
    monkeypatch.setattr(sc.pp, "neighbors", lambda spots, **options: None)
    monkeypatch.setattr(sc.tl, "umap", places)
    before = snapshot(study["table"])
    figure = ig.pl.umap(study, "patient")
    table = study["table"]
    np.testing.assert_array_equal(seen["features"], table.obsm["X_tiny"])
    shown = {part.get_label(): np.asarray(part.get_offsets())[:, 0].astype(int) for part in figure.axes[0].collections}
    for patient, rows in shown.items():
        assert set(table.obs["patient"].iloc[rows]) == {patient}
    assert sum(map(len, shown.values())) == table.n_obs
    assert snapshot(table) == before
    by_gene = ig.pl.umap(study, "G00", max_spots=50)
    assert labels(by_gene) == ["UMAP 2", f"G00, {UNIT}"]
    chosen = by_gene.axes[0].collections[1]
    assert len(chosen.get_offsets()) == 50
    with pytest.raises(MissingKeyError, match="`weather` not found"):
        ig.pl.umap(study, "weather")
    with pytest.raises(MissingKeyError, match=r"Nor is it a gene \(near: G"):
        ig.pl.umap(study, "G0O")


def test_retrieved_patches_are_those_of_the_named_spots(study):
    ig.tl.fit(study, "knn", validate_on=["C"], uncertainty=False)
    spot = study["table"].obs_names[-1]
    figure = ig.pl.retrieved(study, spot, n=3)
    references = ig.tl.retrieve(study, spot, n=3)
    first, *others = figure.axes
    np.testing.assert_array_equal(first.images[0].get_array(), ig.get.patches(study, [spot])[0])
    for ax, row in zip(others, references.itertuples(), strict=True):
        assert ax.get_title() == f"{row.similarity:.2f}\n{row.section}"
        np.testing.assert_array_equal(ax.images[0].get_array(), ig.get.patches(study, [row.reference])[0])
    # A patch is as wide as its field of view.
    assert bars(figure)[0].dx * first.images[0].get_array().shape[1] == pytest.approx(_field_um(study))
    with pytest.raises(Img2GeneError, match="at most 20 rows"):
        ig.pl.retrieved(study, list(study["table"].obs_names[:21]))
    with pytest.raises(Img2GeneError, match="field=5"):
        ig.pl.retrieved(study, spot, field=5)


def test_training_spots_of_other_studies_have_no_picture(study):
    model = ig.tl.fit(study, "knn", validate_on=["C"], uncertainty=False, inplace=False)
    alone = study.filter_by_coordinate_system("C1")
    figure = ig.pl.retrieved(alone, alone["table"].obs_names[0], n=2, model=model)
    assert [bool(ax.images) for ax in figure.axes] == [True, False, False]
    assert figure.axes[1].texts[0].get_text() == "not in\nthis study"


def _field_um(study):
    return _schema.read_json(study["table"], "patches")["patch_um"][0]


CELLS = [
    "import warnings; warnings.simplefilter('ignore'); import pandas as pd, matplotlib.pyplot as plt, img2gene as ig\n"
    "scores = pd.DataFrame({'model': 'm', 'section': 'A', 'gene': list('abc'), 'pcc': [0.1, 0.2, 0.3]})",
    "ig.pl.scores(scores)",
    "figure = ig.pl.scores(scores)",
    "ig.pl.scores(scores);",
    "figure",
    "ax = plt.subplots()[1]\nig.pl.scores(scores, ax=ax)",
    "for _ in range(2):\n    ig.pl.score_heatmap(scores)",
]


def test_a_notebook_shows_each_figure_once(tmp_path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    nbclient.NotebookClient(book, timeout=120, kernel_name="python3").execute()
    pictures = [sum("image/png" in output.get("data", {}) for output in cell.outputs) for cell in book.cells]
    assert pictures == [0, 1, 1, 1, 1, 1, 2]


def test_a_figure_can_be_stored(predicted):
    figure = ig.pl.prediction(predicted, "G00", sections="C1")
    again = pickle.loads(pickle.dumps(figure))
    assert len(again.axes) == len(figure.axes)


def test_a_model_shows_what_it_was_trained_on(trained_study):
    model = ig.get.model(trained_study)
    shown = model._repr_html_()
    for text in ("ridge", "12 genes", "tiny", "A1, A2, B1", "C1", UNIT, "90%"):
        assert text in shown
    assert "leakage" not in shown
    odd = type(model)(model.predictor, ["<b>"], {}, model.inputs, model.labels, {"leakage": ["P1"]})
    assert "<b>&lt;b&gt;" not in odd._repr_html_() and "&lt;b&gt;" in odd._repr_html_()
    assert "P1 on both sides of the split" in odd._repr_html_()
