from __future__ import annotations

import json
import logging
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import get_table_keys

import img2gene as ig
from img2gene._errors import Img2GeneError
from img2gene.datasets._genes import DOMAINS, GROUPS, SYMBOLS
from img2gene.settings import settings

SMALL = {"n_sections": 1, "n_spots": 60, "mpp": 1.0, "seed": 3}


@pytest.fixture(autouse=True, scope="module")
def quiet():
    before, settings.progress = settings.progress, False
    yield
    settings.progress = before


def draw(n_patients: int = 1, **changes: object) -> SpatialData:
    return ig.datasets.synthetic_cohort(n_patients, **(SMALL | changes))


def of_patient(table: AnnData, name: str) -> AnnData:
    return table[table.obs["patient"] == name]


def correlations(values: np.ndarray, with_: np.ndarray) -> np.ndarray:
    """Pearson correlation of every column of ``values`` with one vector."""
    values, with_ = values - values.mean(axis=0), with_ - with_.mean()
    return values.T @ with_ / (np.linalg.norm(values, axis=0) * np.linalg.norm(with_))


def log_counts(table: AnnData) -> np.ndarray:
    counts = table.X.toarray()
    return np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))


@pytest.fixture(scope="module")
def cohort() -> SpatialData:
    return draw(3)


@pytest.fixture(scope="module")
def table(cohort: SpatialData) -> AnnData:
    return cohort["table"]


@pytest.fixture(scope="module")
def clean() -> AnnData:
    """A larger table whose counts differ from the truth by sampling noise alone."""
    return draw(2, n_spots=150, mpp=2.0, dropout=0, batch=0)["table"]


@pytest.fixture(scope="module")
def dyes(cohort: SpatialData) -> pd.DataFrame:
    """Haematoxylin and eosin within every spot, by an independent colour deconvolution."""
    from skimage.color import rgb2hed

    rows = []
    for key, spots in cohort.shapes.items():
        image = np.moveaxis(cohort[key.replace("_spots", "_image")].values, 0, -1)
        for x, y, radius in zip(spots.geometry.x, spots.geometry.y, spots["radius"], strict=True):
            window = image[int(y - radius) : int(y + radius), int(x - radius) : int(x + radius)]
            hed = rgb2hed(window)
            rows.append((hed[..., 0].mean(), hed[..., 1].mean()))
    return pd.DataFrame(rows, columns=["haematoxylin", "eosin"])


def test_symbols_are_unique_and_any_leading_part_has_markers_of_every_group():
    assert len(set(SYMBOLS)) == len(SYMBOLS) == 298
    assert {"ERBB2", "COL1A1", "CD3D", "ADIPOQ", "CA9", "MKI67", "ACTB"} <= set(SYMBOLS[:30])
    assert len(set(GROUPS[:10])) == 10


def test_layout_of_the_object(cohort: SpatialData, table: AnnData):
    assert list(cohort.images) == ["P1_S1_image", "P2_S1_image", "P3_S1_image"]
    assert cohort["P1_S1_image"].dtype == np.uint8
    assert get_table_keys(table)[0] == [f"P{i}_S1_spots" for i in (1, 2, 3)]
    assert table.shape == (180, 298)
    assert table.obs_names.is_unique and table.var_names.is_unique
    assert table.X.format == "csr" and table.X.dtype == np.float32
    assert np.array_equal(table.X.data, np.rint(table.X.data))
    assert list(table.obs["patient"].unique()) == ["P1", "P2", "P3"]
    assert set(json.loads(table.uns["img2gene"]["sections"])) == {"P1_S1", "P2_S1", "P3_S1"}
    assert set(table.uns["spatial"]) == {"P1_S1", "P2_S1", "P3_S1"}


def test_uns_records_how_the_study_was_made(table: AnnData):
    record = json.loads(table.uns["synthetic"])
    assert record["seed"] == 3 and record["confounded_patients"] == ["P1", "P2"]
    assert record["domains"] == list(DOMAINS)
    assert record["confounded_genes"] == list(table.var_names[table.var["confounded"]])


def test_domain_is_the_largest_fraction_and_fractions_sum_to_one(table: AnnData):
    fractions = table.obsm["domain_fractions"]
    assert fractions.shape == (180, len(DOMAINS)) and fractions.dtype == np.float32
    np.testing.assert_allclose(fractions.sum(axis=1), 1, atol=1e-5)
    assert list(table.obs["domain"]) == [DOMAINS[k] for k in fractions.argmax(axis=1)]
    assert set(table.obs["domain"]) == set(DOMAINS)


def test_spots_lie_on_tissue_at_the_pitch_of_the_array(cohort: SpatialData, table: AnnData):
    first = of_patient(table, "P1")
    xy = first.obsm["spatial"]
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    # 100 µm at 1 µm per pixel.
    np.testing.assert_allclose(distance.min(), 100, rtol=1e-6)
    not_fat = (first.obs["domain"] != "adipose").to_numpy()
    image = cohort["P1_S1_image"].values
    colour = [image[:, int(y) - 20 : int(y) + 20, int(x) - 20 : int(x) + 20].mean() for x, y in xy[not_fat]]
    assert max(colour) < 235 < image[:, :10, :10].mean()


def test_markers_are_higher_in_their_own_domain(clean: AnnData):
    counts = pd.DataFrame(log_counts(clean), columns=clean.var_names)
    mean = counts.groupby(clean.obs["domain"].to_numpy()).mean()
    for domain in DOMAINS:
        markers = [symbol for symbol, group in zip(SYMBOLS, GROUPS, strict=True) if group == domain]
        assert (mean[markers].mean(axis=1).idxmax()) == domain
        assert (mean[markers].idxmax() == domain).mean() > 0.9


def test_hypoxia_raises_its_genes_and_lowers_the_cell_cycle(clean: AnnData):
    tumour = clean[clean.obs["domain"] == "tumour"]
    by_gene = pd.Series(correlations(tumour.layers["truth"], tumour.obs["hypoxia"].to_numpy()), clean.var_names)
    assert by_gene[["CA9", "VEGFA"]].min() > 0.8
    assert by_gene[["MKI67", "TOP2A"]].max() < -0.8


def test_truth_is_the_stated_function_of_what_the_object_holds(table: AnnData):
    var = table.var
    rate = var["baseline"].to_numpy() + table.obsm["domain_fractions"] @ table.varm["domain_effect"].T
    rate = rate + np.outer(table.obs["hypoxia"] - 0.5, var["hypoxia_effect"])
    share = np.exp(rate) / np.exp(rate).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(table.layers["truth"], np.log1p(1e4 * share), rtol=1e-4)


def test_without_signal_the_truth_is_the_same_in_every_spot():
    truth = draw(signal=0)["table"].layers["truth"]
    np.testing.assert_allclose(truth, np.broadcast_to(truth[0], truth.shape), rtol=1e-6)


def test_counts_are_negative_binomial_around_the_expected_counts(clean: AnnData):
    expected = clean.obs["expected_counts"].to_numpy()[:, None] * np.expm1(clean.layers["truth"]) / 1e4
    variance = expected + expected**2 / clean.var["dispersion"].to_numpy()
    counts = clean.X.toarray()
    total = (counts.sum(axis=0) - expected.sum(axis=0)) / np.sqrt(variance.sum(axis=0))
    assert np.abs(total).max() < 5 and abs(total.mean()) < 4 / np.sqrt(len(total))
    assert np.mean((counts - expected) ** 2 / variance) == pytest.approx(1, abs=0.03)


def test_dropout_loses_counts_at_its_rate_and_leaves_truth_and_image_alone():
    whole, lossy = draw(dropout=0), draw(dropout=0.5)
    before, after = whole["table"].X.toarray(), lossy["table"].X.toarray()
    assert (after > 0).sum() / (before > 0).sum() == pytest.approx(0.5, abs=0.02)
    assert np.array_equal(after[after > 0], before[after > 0])
    assert np.array_equal(whole["table"].layers["truth"], lossy["table"].layers["truth"])
    assert np.array_equal(whole["P1_S1_image"].values, lossy["P1_S1_image"].values)


def test_depth_is_the_median_of_the_expected_counts():
    expected = draw(depth=500, n_spots=200, mpp=2.0)["table"].obs["expected_counts"]
    assert expected.median() == pytest.approx(500, rel=0.1)


def test_batch_moves_genes_of_one_patient_together():
    quiet_pair, shifted = (draw(2, batch=batch, n_spots=100, mpp=2.0)["table"] for batch in (0, 1.0))

    def spread(table: AnnData) -> float:
        residual = log_counts(table) - table.layers["truth"]
        one, two = (residual[(table.obs["patient"] == name).to_numpy()].mean(axis=0) for name in ("P1", "P2"))
        return float(np.std(one - two))

    assert spread(shifted) > 4 * spread(quiet_pair)


@pytest.mark.parametrize(("confounding", "low", "high"), [(1.0, 0.25, 1.0), (0.0, -0.1, 0.1)])
def test_stain_drives_the_confounded_genes_in_training_patients_only(confounding: float, low: float, high: float):
    table = draw(3, n_spots=120, mpp=2.0, confounding=confounding)["table"]
    by_patient = {}
    for name in ("P1", "P2", "P3"):
        part = of_patient(table, name)
        by_patient[name] = correlations(log_counts(part) - part.layers["truth"], part.obs["stain"].to_numpy())
    chosen = table.var["confounded"].to_numpy()
    assert chosen.mean() == pytest.approx(0.2, abs=0.01)
    for name in ("P1", "P2"):
        assert low < by_patient[name][chosen].mean() < high
    assert abs(by_patient["P3"][chosen].mean()) < 0.1


def test_confounded_patients_can_be_named():
    table = draw(2, n_spots=120, mpp=2.0, confounding=1.0, confounded_patients=["P2"])["table"]
    chosen = table.var["confounded"].to_numpy()
    mean = []
    for name in ("P1", "P2"):
        part = of_patient(table, name)
        residual = (log_counts(part) - part.layers["truth"])[:, chosen]
        mean.append(correlations(residual, part.obs["confounder"].to_numpy()).mean())
    assert abs(mean[0]) < 0.1 and mean[1] > 0.25


def test_domains_can_be_told_apart_in_the_pixels(table: AnnData, dyes: pd.DataFrame):
    from sklearn.metrics import roc_auc_score

    def auroc(one: str, other: str, dye: str) -> float:
        keep = table.obs["domain"].isin([one, other]).to_numpy()
        return roc_auc_score(table.obs["domain"][keep] == one, dyes[dye][keep])

    assert auroc("immune", "adipose", "haematoxylin") > 0.95
    assert auroc("tumour", "stroma", "haematoxylin") > 0.9
    assert auroc("stroma", "adipose", "eosin") > 0.95


def test_hypoxia_and_stain_field_show_in_the_pixels(table: AnnData, dyes: pd.DataFrame):
    obs = table.obs[["hypoxia", "confounder"]].reset_index(drop=True).join(dyes)
    # Each patient has its own stain, each domain its own nuclei: compare spots of the same kind.
    kinds = [table.obs[name].to_numpy() for name in ("patient", "domain")]
    obs = obs - obs.groupby(kinds).transform("mean")
    cellular = table.obs["domain"].isin(["tumour", "immune"]).to_numpy()
    stroma = (table.obs["domain"] == "stroma").to_numpy()
    assert obs["hypoxia"][cellular].corr(obs["haematoxylin"][cellular]) < -0.4
    assert obs["confounder"][stroma].corr(obs["eosin"][stroma]) > 0.5


def test_same_seed_same_study_and_another_seed_another(cohort: SpatialData):
    again, other = draw(3), draw(1, seed=4)
    for key in cohort.images:
        assert np.array_equal(cohort[key].values, again[key].values)
    assert (cohort["table"].X != again["table"].X).nnz == 0
    pd.testing.assert_frame_equal(cohort["table"].obs, again["table"].obs)
    assert cohort["table"].uns["synthetic"] == again["table"].uns["synthetic"]
    assert cohort["P1_S1_image"].shape != other["P1_S1_image"].shape or not np.array_equal(
        cohort["P1_S1_image"].values, other["P1_S1_image"].values
    )


def test_more_patients_and_sections_leave_the_earlier_ones_as_they_were(cohort: SpatialData, table: AnnData):
    wider = draw(2, n_sections=2)
    for section in ("P1_S1", "P2_S1"):
        assert np.array_equal(cohort[f"{section}_image"].values, wider[f"{section}_image"].values)
        one, two = (part[part.obs["section"] == section] for part in (table, wider["table"]))
        assert list(one.obs_names) == list(two.obs_names)
        assert (one.X != two.X).nnz == 0
    assert wider["table"].obs_names.is_unique
    assert not np.array_equal(wider["P1_S1_image"].values[:, :300, :300], wider["P1_S2_image"].values[:, :300, :300])


def test_fewer_genes_are_the_first_ones_with_the_same_effects(table: AnnData):
    few = draw(n_genes=40)["table"]
    assert list(few.var_names) == list(SYMBOLS[:40])
    assert np.array_equal(few.var["baseline"], table.var["baseline"][:40])
    assert few.var["confounded"].sum() == 8


def test_microns_per_pixel_change_the_resolution_not_the_tissue(cohort: SpatialData, table: AnnData):
    coarse = draw(mpp=2.0)
    first = of_patient(table, "P1")
    np.testing.assert_allclose(coarse["table"].obsm["spatial"] * 2, first.obsm["spatial"])
    assert np.array_equal(coarse["table"].layers["truth"], first.layers["truth"])
    np.testing.assert_allclose(np.array(coarse["P1_S1_image"].shape) * 2, cohort["P1_S1_image"].shape, atol=3, rtol=0.5)
    assert coarse["P1_S1_spots"]["radius"].iloc[0] == pytest.approx(55 / 2 / 2)


def test_global_random_state_is_untouched():
    np.random.seed(7)
    before = np.random.get_state()[1].copy()
    draw(n_spots=10, n_genes=10)
    assert np.array_equal(np.random.get_state()[1], before)


@pytest.mark.filterwarnings("ignore:Call to deprecated class Scaler:DeprecationWarning")  # ome-zarr on its own import
@pytest.mark.filterwarnings("ignore:zarr v3 autosharding:UserWarning")  # anndata, about its next release
def test_written_study_reads_back_equal(tmp_path):
    small = draw(2, n_spots=12, n_genes=20)
    small.write(tmp_path / "study.zarr")
    back = SpatialData.read(tmp_path / "study.zarr")
    assert np.array_equal(small["P2_S1_image"].values, back["P2_S1_image"].values)
    one, two = small["table"], back["table"]
    assert (one.X != two.X).nnz == 0
    assert np.array_equal(one.layers["truth"], two.layers["truth"])
    assert np.array_equal(one.obsm["domain_fractions"], two.obsm["domain_fractions"])
    assert one.uns["synthetic"] == str(two.uns["synthetic"])
    assert list(one.obs["domain"].cat.categories) == list(two.obs["domain"].cat.categories) == list(DOMAINS)
    assert list(one.obs["domain"]) == list(two.obs["domain"])


def test_numpy_numbers_are_arguments_too():
    table = draw(np.int64(1), n_spots=np.int32(10), n_genes=10, signal=np.float32(0.5))["table"]
    assert json.loads(table.uns["synthetic"])["signal"] == 0.5


def test_all_bad_arguments_are_listed_in_one_message():
    with pytest.raises(Img2GeneError) as caught:
        ig.datasets.synthetic_cohort(2, 0, 5, 400, signal=-1, dropout=1.0, mpp=float("nan"), confounded_patients=["P9"])
    for text in (
        "7 problems",
        "n_sections=0: expected a whole number from 1 to 100",
        "n_spots=5: expected a whole number from 10 to 5000",
        "n_genes=400: expected a whole number from 10 to 298",
        "signal=-1",
        "dropout=1.0: expected a number from 0 to 0.95",
        "mpp=nan",
        "no patient P9 (available: P1, P2)",
    ):
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_patients": True}, "n_patients=True"),
        ({"n_patients": 1.5, "confounded_patients": ["P1"]}, "n_patients=1.5"),
        ({"seed": -1}, "seed=-1"),
        ({"confounding": "much"}, "confounding='much'"),
        ({"depth": float("inf")}, "depth=inf"),
        ({"confounded_patients": "P1"}, "expected a list of names"),
        ({"confounded_patients": 1}, "expected a name or a list of names"),
    ],
)
def test_bad_argument_is_named(arguments: dict, message: str):
    with pytest.raises(Img2GeneError, match=message):
        ig.datasets.synthetic_cohort(**arguments)


def test_progress_is_shown_when_wanted_and_one_line_is_logged(capfd, caplog, monkeypatch):
    monkeypatch.setattr(settings, "progress", True)
    with caplog.at_level(logging.INFO, logger="img2gene"):
        draw(n_spots=10, n_genes=10)
    assert "Drawing sections" in capfd.readouterr().err
    assert "drew 1 sections with 10 spots each" in caplog.text


def test_importing_the_module_costs_no_heavy_library():
    code = "import sys, img2gene; img2gene.datasets; print([m for m in ('torch', 'spatialdata', 'scipy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
