"""Leaks that are planted are found and named; honest studies are left in peace."""

from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy import stats

import img2gene as ig
from img2gene._errors import Img2GeneError, MissingKeyError
from img2gene._leaks import duplicates, smoothing
from img2gene._leaks.find import find_leaks
from img2gene._study.study import Study
from img2gene.datasets import synthetic
from img2gene.metrics import neighbor_graph

COLUMNS = ["kind", "severity", "sections", "groups", "value", "threshold", "message"]


def leaks_of(table, groups, **options):
    """Look for leaks in a table alone, without regions and images."""
    return find_leaks(Study(SimpleNamespace(tables={"table": table}, images={})), groups, **options)


def cohort(*shape, **changes):
    """Table of a synthetic cohort; its images are not drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "render", lambda *_: np.full((8, 8, 3), 200, dtype=np.uint8))
        return ig.datasets.synthetic_cohort(*shape, mpp=2.0, **changes)["table"]


@pytest.fixture(scope="module")
def patients():
    """Three patients with one section each; not to be changed."""
    return cohort(3, 1, 100, seed=5)


@pytest.fixture(scope="module")
def embedded():
    """Three patients with one embedded section each; not to be changed."""
    sdata = ig.datasets.synthetic_cohort(3, 1, 60, 60, mpp=2.0)
    ig.pp.extract_patches(sdata, patch_um=112, patch_px=32)
    ig.pp.embed_patches(sdata, "color-texture")
    return sdata


def rows_of(table, section):
    return np.flatnonzero(table.obs["section"] == section)


def dense(matrix):
    return matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)


def with_copy(table, section="P1_S1", kept=1.0, noise=0.0):
    """The table and a section once more under another name and patient, counts thinned and embedding shaken."""
    rng = np.random.default_rng(0)
    copy = table[rows_of(table, section)].copy()
    copy.X = sp.csr_matrix(rng.binomial(dense(copy.X).astype(int), kept).astype(np.float32))
    copy.obs["section"], copy.obs["patient"] = "Q1", "Q"
    copy.obs["library_size"] = np.asarray(copy.X.sum(axis=1)).ravel()
    copy.obs_names = [f"Q_{name}" for name in copy.obs_names]
    for key in copy.obsm:
        if key.startswith("X_"):
            copy.obsm[key] = copy.obsm[key] + noise * copy.obsm[key].std(axis=0) * rng.normal(size=copy.obsm[key].shape)
    return ad.concat([table, copy])


def identity_of(table, key="X_color-texture"):
    return {"name": key.removeprefix("X_"), "width": table.obsm[key].shape[1]}


def smooth(values, positions, how):
    """Averages over neighbours, or a Gaussian whose SD is a multiple of the distance to the nearest spot."""
    if how.startswith("k"):
        k, with_self = int(how[1]), how.endswith("+self")
        return (neighbor_graph(positions, k) @ values * k + with_self * values) / (k + with_self)
    square = np.square(positions[:, None] - positions[None]).sum(axis=-1)
    pitch = np.median(np.sort(square, axis=1)[:, 1])
    weight = np.exp(-square / (2 * float(how.removeprefix("gauss")) ** 2 * pitch))
    return weight / weight.sum(axis=1, keepdims=True) @ values


SMOOTHINGS = ["k4", "k4+self", "k6", "k8+self", "gauss1", "gauss2"]


def log_labels(counts, library):
    return np.log1p(1e4 * counts / library[:, None])


def honest_layers(counts, library):
    """Labels on usual scales, made of nothing but a spot's own counts."""
    log = log_labels(counts, library)
    expected = np.outer(library, counts.sum(axis=0) / library.sum())
    return {
        "log": log,
        "z-scores": (log - log.mean(axis=0)) / log.std(axis=0).clip(1e-9),
        "clipped": ((log - log.mean(axis=0)) / log.std(axis=0).clip(1e-9)).clip(-2, 2),
        "pearson residuals": (counts - expected) / np.sqrt(expected + expected**2 / 100 + 1e-9),
        "square root": np.sqrt(counts),
        "per 10,000": 1e4 * counts / library[:, None],
        "log of counts": np.log1p(counts),
    }


def smoothed_tables(table, how):
    """The same single section with smoothed counts or layers, by what was done."""
    places, counts = np.asarray(table.obsm["spatial"], dtype=float), dense(table.X).astype(float)
    library = table.obs["library_size"].to_numpy(dtype=float).clip(1)
    means, depth = smooth(counts, places, how), smooth(library[:, None], places, how)[:, 0]
    layers = {
        "log labels": smooth(log_labels(counts, library), places, how),
        "log of means": log_labels(means, depth),
        "means": means,
        "rounded means": np.round(means),
        "log of rounded means": log_labels(np.round(means), depth),
    }
    for name, values in layers.items():
        yield name, ad.AnnData(table.X, table.obs, obsm=dict(table.obsm), layers={"labels": values}), "labels"
    for name, values in (("means in X", means), ("rounded means in X", np.round(means))):
        obs = table.obs.assign(library_size=values.sum(axis=1))
        yield name, ad.AnnData(sp.csr_matrix(values), obs, obsm=dict(table.obsm)), None


def kinds(found):
    return {finding.kind for finding in found}


@pytest.mark.parametrize("batch", [0.25, 0.1, 0.0])
@pytest.mark.parametrize(("seed", "shape"), [(0, (3, 1, 60)), (1, (4, 2, 60)), (2, (3, 3, 60))])
def test_honest_studies_have_no_finding(seed, shape, batch):
    assert leaks_of(cohort(*shape, seed=seed, batch=batch), "patient") == []


def test_an_embedded_honest_study_has_an_empty_result_and_is_left_as_it_was(embedded, snapshot):
    before = snapshot(embedded["table"])
    found = ig.tl.check_leaks(embedded)
    assert list(found.columns) == COLUMNS
    assert found.empty
    assert snapshot(embedded["table"]) == before


@pytest.mark.parametrize("groups", ["patient", "section"])
def test_a_table_without_rows_has_no_finding(embedded, copy_of, groups):
    sdata = copy_of(embedded)
    # Filtering in place keeps the regions, which a copy without rows would contradict.
    sdata["table"]._inplace_subset_obs(np.zeros(sdata["table"].n_obs, dtype=bool))
    assert ig.tl.check_leaks(sdata, groups=groups).columns.tolist() == COLUMNS
    assert duplicates.identical_rows(sp.csr_matrix((0, 5)), np.zeros(0, dtype=int)).shape == (0, 0)


def test_a_patient_in_several_groups_is_named():
    table = cohort(3, 2, 40, 40)
    found = leaks_of(table, "section")
    assert [(f.kind, f.severity, f.sections, f.value) for f in found] == [
        ("shared patient", "error", f"P{i}_S1, P{i}_S2", 2.0) for i in (1, 2, 3)
    ]
    assert 'groups="patient"' in found[0].message
    assert leaks_of(table, "patient") == []


def test_where_patients_are_not_recorded_a_section_in_several_groups_is_named(patients):
    table = patients.copy()
    del table.obs["patient"]
    table.obs["fold"] = np.where(np.arange(table.n_obs) < 50, "a", "b")
    found = leaks_of(table, "fold")
    assert [(f.kind, f.sections, f.groups) for f in found if f.kind == "shared patient"] == [
        ("shared patient", "P1_S1", "a, b")
    ]
    with pytest.raises(MissingKeyError, match="Say which donor"):
        leaks_of(table, "patient")


def test_a_copied_section_is_duplicated_and_similar(patients):
    found = leaks_of(with_copy(patients), "patient")
    assert [(f.kind, f.severity, f.sections, f.groups) for f in found] == [
        ("duplicated spots", "error", "P1_S1, Q1", "P1, Q"),
        ("similar sections", "warning", "P1_S1, Q1", "P1, Q"),
        ("similar sections", "warning", "P1_S1, Q1", "P1, Q"),
    ]
    duplicated, doubles, donor = found
    assert duplicated.value == 100
    assert doubles.value == 1 > doubles.threshold
    assert donor.value < 0.02 < donor.threshold
    assert "Q1" in donor.message


@pytest.mark.parametrize("kept", [0.8, 0.4])
def test_a_copy_with_thinned_counts_has_doubles_even_where_only_two_sections_can_be_compared(patients, kept):
    two = with_copy(patients[rows_of(patients, "P1_S1")], kept=kept)
    found = leaks_of(two, "patient")
    assert [(f.kind, f.sections) for f in found] == [("similar sections", "P1_S1, Q1")]
    assert found[0].value > 0.9
    assert [f.sections for f in leaks_of(with_copy(patients, kept=0.1), "patient")] == ["P1_S1, Q1"]


@pytest.mark.parametrize("seed", range(4))
def test_another_section_of_a_patient_under_a_new_name_is_told_by_the_donor(seed):
    table = cohort(3, 2, 80, seed=seed)
    table = table[~table.obs["section"].isin(["P2_S2", "P3_S2"])].copy()
    table.obs["patient"] = table.obs["patient"].astype(str).where(table.obs["section"] != "P1_S2", "new")
    found = leaks_of(table, "patient", seed=seed)
    assert [(f.kind, f.sections) for f in found] == [("similar sections", "P1_S1, P1_S2")]
    assert found[0].value < 0.1


def test_doubles_in_the_embedding_are_found_though_none_is_identical(embedded):
    table = with_copy(embedded["table"], noise=0.01)
    table.X = sp.csr_matrix(np.random.default_rng(0).poisson(3, table.shape).astype(np.float32))
    del table.obs["library_size"]
    found = leaks_of(table, "patient", identity=identity_of(table))
    assert [(f.kind, f.severity, f.sections) for f in found] == [("similar sections", "warning", "P1_S1, Q1")]
    assert "embedding" in found[0].message


def test_identical_embeddings_are_duplicates_but_those_of_blank_patches_are_not(embedded):
    table = embedded["table"].copy()
    key, identity = "X_color-texture", identity_of(embedded["table"])
    values = np.array(table.obsm[key])
    first, second = rows_of(table, "P1_S1"), rows_of(table, "P2_S1")
    values[[first[3], first[4], second[5], second[6]]] = values[first[3]]
    table.obsm[key] = values
    assert leaks_of(table, "patient", identity=identity) == []
    values = values.copy()
    values[second[9]] = values[first[8]]
    table.obsm[key] = values
    (found,) = leaks_of(table, "patient", identity=identity)
    assert (found.kind, found.value, found.sections) == ("duplicated spots", 1, "P1_S1, P2_S1")
    table.obs["patch_tissue"] = 0.0
    assert leaks_of(table, "patient", identity=identity) == []


def test_duplicates_within_a_group_are_a_warning(patients):
    table = with_copy(patients)
    table.obs["patient"] = table.obs["patient"].astype(str).replace("Q", "P1")
    assert [(f.kind, f.severity) for f in leaks_of(table, "patient")] == [("duplicated spots", "warning")]


def test_identical_rows_are_counted_as_by_brute_force():
    rng = np.random.default_rng(0)
    values, parts = rng.integers(0, 2, (60, 4)).astype(np.float32), rng.integers(0, 3, 60)
    rows = [set(map(tuple, values[parts == part])) for part in range(3)]
    expected = [[len(one & other) for other in rows] for one in rows]
    stored = sp.csr_matrix(values + 1)
    stored.data -= 1
    for matrix in (values, sp.csr_matrix(values), sp.csc_matrix(values), stored):
        shared = duplicates.identical_rows(matrix, parts).toarray()
        off = ~np.eye(3, dtype=bool)
        np.testing.assert_array_equal(shared[off], np.array(expected)[off])


def test_chance_of_identical_counts_is_that_of_two_poisson_counts():
    numbers = np.arange(200)
    same = {mean: np.square(stats.poisson.pmf(numbers, mean)).sum() for mean in (1, 7)}
    for mean, chance in same.items():
        enough = int(np.ceil(np.log(duplicates.MAX_CHANCE) / np.log(chance)))
        for n_genes, expected in ((enough, True), (enough - 1, False)):
            counts = np.zeros((2, 40))
            counts[:, :n_genes] = mean
            assert duplicates.beyond_chance(sp.csr_matrix(counts)).tolist() == [expected] * 2


def test_sparse_spots_that_are_alike_by_chance_are_no_duplicates(patients):
    table = patients.copy()
    table.X = sp.csr_matrix(np.random.default_rng(0).poisson(0.01, table.shape).astype(np.float32))
    assert "duplicated spots" not in kinds(leaks_of(table, "patient"))


def test_donor_distance_is_that_of_the_drawn_effects():
    table = cohort(3, 2, 200, batch=0.4, signal=0.0, dropout=0.0)
    _, sections = np.unique(table.obs["section"], return_inverse=True)
    found = duplicates.donor_distances(table.X, sections, np.random.default_rng(0))
    patient = np.arange(6) // 2
    same = patient[:, None] == patient
    np.testing.assert_allclose(found[same], 0, atol=0.01)
    # two patients' effects of variance 0.16 each; what falls on the removed components is missing
    assert found[~same].mean() == pytest.approx(2 * 0.16, rel=0.15)


def test_noise_of_poisson_counts_is_that_of_poisson_counts_whatever_the_library():
    rng = np.random.default_rng(0)
    library, positions = np.exp(rng.normal(size=400)), rng.uniform(size=(400, 2))
    counts = rng.poisson(np.outer(library, np.full(60, 20.0)))
    assert smoothing.noise_ratio(counts, library, positions) == pytest.approx(1, abs=0.05)
    means = smooth(counts.astype(float), positions, "k6+self")
    assert smoothing.noise_ratio(means, smooth(library[:, None], positions, "k6+self")[:, 0], positions) < 0.3


def test_noise_of_single_genes_is_not_autocorrelated_though_the_genes_are(patients):
    table = patients[rows_of(patients, "P1_S1")]
    places = np.asarray(table.obsm["spatial"])
    values = log_labels(table.X.toarray(), table.obs["library_size"].to_numpy())
    assert np.max(ig.metrics.morans_i(values, neighbor_graph(places))) > 0.4
    assert smoothing.noise_autocorrelation(values, places) < 0.01
    assert smoothing.noise_autocorrelation(smooth(values, places, "k6+self"), places) > 0.3


def test_too_little_data_tells_nothing():
    counts, places = np.ones((20, 50)), np.random.default_rng(0).uniform(size=(20, 2))
    assert np.isnan(smoothing.noise_ratio(counts, np.ones(20), places))
    assert np.isnan(smoothing.noise_autocorrelation(counts, places))
    assert np.isnan(smoothing.explained_by_neighbors(counts, counts, np.ones(20), places))


def check_layers(table, smoothings=SMOOTHINGS):
    """No honest layer is a finding; every smoothed one is."""
    counts, library = dense(table.X).astype(float), table.obs["library_size"].to_numpy(dtype=float).clip(1)
    for name, values in honest_layers(counts, library).items():
        found = leaks_of(
            ad.AnnData(table.X, table.obs, obsm=dict(table.obsm), layers={"y": values}), "patient", layer="y"
        )
        assert found == [], name
    for how in smoothings:
        for name, smoothed, layer in smoothed_tables(table, how):
            found = leaks_of(smoothed, "patient", layer=layer)
            assert kinds(found) == {"smoothed labels"}, (how, name)
            assert {f.severity for f in found} == {"error"}


@pytest.mark.parametrize("depth", [3000.0, 30000.0])
def test_smoothed_labels_are_told_from_honest_ones(depth):
    check_layers(cohort(1, 1, 120, 120, seed=2, depth=depth))


@pytest.mark.real
@pytest.mark.parametrize("name", ["her2st/ST-cnts/B4.tsv.gz", "her2st/ST-cnts/C3.tsv.gz", "mob_st/MOB1_counts.tsv.gz"])
def test_smoothed_labels_of_real_sections_are_told_from_honest_ones(data, name):
    frame = pd.read_csv(data / name, sep="\t", index_col=0)
    depth = frame.sum(axis=1)
    frame = frame.loc[:, frame.mean().nlargest(400).index]
    obs = pd.DataFrame({"section": "S", "patient": "P", "library_size": depth}, index=frame.index)
    places = np.array([spot.split("x") for spot in frame.index], dtype=float)
    check_layers(
        ad.AnnData(sp.csr_matrix(frame.to_numpy(dtype=np.float32)), obs, obsm={"spatial": places}),
        ["k4", "k6+self", "gauss1"],
    )


@pytest.mark.real
def test_two_mice_are_not_one(data):
    frames = [pd.read_csv(data / "mob_st" / f"MOB{i}_counts.tsv.gz", sep="\t", index_col=0) for i in (1, 2)]
    genes = frames[0].columns.intersection(frames[1].columns)
    names = np.repeat(["MOB1", "MOB2"], [len(frame) for frame in frames])
    counts = sp.csr_matrix(np.vstack([frame[genes].to_numpy(dtype=np.float32) for frame in frames]))
    places = np.array([spot.split("x") for frame in frames for spot in frame.index], dtype=float)
    obs = pd.DataFrame({"section": names, "patient": names}, index=[f"s{i}" for i in range(len(names))])
    assert leaks_of(ad.AnnData(counts, obs, obsm={"spatial": places}), "patient") == []


def test_one_smoothed_section_among_others_is_named(patients):
    table = patients.copy()
    rows = rows_of(table, "P2_S1")
    counts = table.X.toarray()
    counts[rows] = np.round(smooth(counts[rows], np.asarray(table.obsm["spatial"])[rows], "k6+self"))
    table.X = sp.csr_matrix(counts)
    table.obs["library_size"] = counts.sum(axis=1)
    smoothed = [f for f in leaks_of(table, "patient") if f.kind == "smoothed labels"]
    assert [f.sections for f in smoothed] == ["P2_S1"]


def test_without_positions_nothing_is_said_about_smoothing(patients, caplog):
    table = ad.AnnData(patients.X, patients.obs)
    assert leaks_of(table, "patient") == []
    assert "cannot be checked" in caplog.text


def test_a_panel_chosen_on_all_data_is_an_error(study):
    ig.pp.select_genes(study, 5)
    found = ig.tl.check_leaks(study)
    (panel,) = found[found["kind"] == "panel"].itertuples()
    assert (panel.severity, panel.groups, panel.value) == ("error", "A, B, C", 3)
    assert "genes=<number>" in panel.message
    assert leaks_of(study["table"], "patient", uses_panel=False) == []


def test_a_panel_of_one_patient_or_of_unknown_origin_is_a_warning(study):
    ig.pp.select_genes(study, 5, sections=["A1"])
    found = ig.tl.check_leaks(study)
    assert found[["kind", "severity", "groups"]].to_numpy().tolist() == [["panel", "warning", "A"]]
    del study["table"].uns["img2gene"]["panel"]
    found = ig.tl.check_leaks(study)
    assert found["severity"].tolist() == ["warning"]
    assert "unknown where" in found["message"][0]


def test_a_panel_of_sections_outside_the_study_is_no_finding(study):
    ig.pp.select_genes(study, 5, sections=["A1", "A2"])
    table = study["table"][study["table"].obs["patient"] != "A"]
    assert leaks_of(table, "patient") == []


def test_labels_without_counts_are_looked_at_by_themselves(patients):
    values = stats.zscore(log_labels(patients.X.toarray(), patients.obs["library_size"].to_numpy()), axis=0)
    rows, places = rows_of(patients, "P1_S1"), np.asarray(patients.obsm["spatial"])
    smoothed = values.copy()
    smoothed[rows] = smooth(values[rows], places[rows], "k8+self")
    obs = patients.obs.drop(columns="library_size")
    table = ad.AnnData(values, obs, obsm={"spatial": places}, layers={"honest": values, "smoothed": smoothed})
    assert leaks_of(table, "patient") == leaks_of(table, "patient", layer="honest") == []
    assert [(f.kind, f.sections) for f in leaks_of(table, "patient", layer="smoothed")] == [
        ("smoothed labels", "P1_S1")
    ]


@pytest.mark.parametrize("centred", [False, True])
def test_labels_of_a_layer_are_looked_at_where_x_is_empty(patients, centred, caplog):
    honest = log_labels(patients.X.toarray(), patients.obs["library_size"].to_numpy())
    honest = honest - honest.max() if centred else honest
    rows, places = rows_of(patients, "P1_S1"), np.asarray(patients.obsm["spatial"])
    smoothed = honest.copy()
    smoothed[rows] = smooth(honest[rows], places[rows], "k8+self")
    layers = {"honest": honest, "smoothed": smoothed, "few": smoothed * (np.arange(patients.n_vars) < 10)}
    empty = sp.csr_matrix(patients.shape, dtype=np.float32)
    counted = patients.X.multiply(~np.isin(np.arange(patients.n_obs), rows)[:, None]).tocsr()
    for counts in (empty, counted):
        size = np.asarray(counts.sum(axis=1)).ravel()
        table = ad.AnnData(
            counts, patients.obs.assign(library_size=size), obsm={"spatial": places}, layers=dict(layers)
        )
        found = leaks_of(table, "patient", layer="smoothed")
        assert [(f.kind, f.sections) for f in found] == [("smoothed labels", "P1_S1")]
        assert leaks_of(table, "patient", layer="honest") == []
    assert "cannot be checked" not in caplog.text
    table.X = empty
    assert leaks_of(table, "patient", layer="few") == []
    assert 'whether layers["few"] is smoothed cannot be checked' in caplog.text


def test_empty_spots_and_small_sections_are_left_out(patients):
    table = patients[: 100 + 10].copy()
    table.X = sp.csr_matrix(table.X.toarray() * (np.arange(table.n_obs) % 5 > 0)[:, None])
    table.obs["library_size"] = np.asarray(table.X.sum(axis=1)).ravel()
    assert leaks_of(table, "patient") == []


def test_same_seed_same_result_and_errors_come_first(patients):
    table = with_copy(patients, kept=0.5)
    table.obs["fold"] = table.obs["section"].astype(str) + np.where(np.arange(table.n_obs) % 2, "a", "b")
    one, other = (leaks_of(table, "fold", seed=3) for _ in range(2))
    assert one == other
    severities = [finding.severity for finding in one]
    assert severities == sorted(severities)
    assert set(severities) == {"error", "warning"}


def test_what_cannot_be_looked_at_is_refused(study):
    with pytest.raises(Img2GeneError, match="`nothing` not found"):
        ig.tl.check_leaks(study, layer="nothing")
    with pytest.raises(MissingKeyError, match="X_color-texture"):
        ig.tl.check_leaks(study, encoder="color-texture")
    study["table"].X.data[0] = np.nan
    with pytest.raises(Img2GeneError, match="NaN"):
        ig.tl.check_leaks(study)
