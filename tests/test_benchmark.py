"""The benchmark command: presets, what it writes, going on, restricted runs, and what it refuses."""

import dataclasses
import json
import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import img2gene as ig
from img2gene.benchmark import cohorts, protocols
from img2gene.benchmark.__main__ import main, parse_model
from img2gene.benchmark.references import published
from img2gene.benchmark.report import intervals
from img2gene.benchmark.runner import Outcome
from img2gene.io import hest
from img2gene.metrics import mean_interval
from img2gene.tl import CrossValidation
from img2gene.tl._cross_validation.task import Task

SYNTHETIC = ["--cohort", "synthetic", "--encoder", "sparse", "--protocol", "lopo", "--genes", "20"]


class SparseColour:
    """Mean and SD of each colour of every patch, of some 32 × 32 of its pixels: presets have fields of a million."""

    width = 6

    def __call__(self, patches, side=None):
        step = max(1, patches.shape[1] // 32)
        flat = patches[:, ::step, ::step].reshape(len(patches), -1, 3).astype(np.float64)
        return np.concatenate([flat.mean(axis=1), flat.std(axis=1)], axis=1).astype(np.float32)


@pytest.fixture(autouse=True, scope="module")
def sparse_encoder(tiny_encoder):
    build = lambda spec, **options: SparseColour()
    ig.encoders.register(dataclasses.replace(tiny_encoder, name="sparse", build=build))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of a finished run of ridge on the synthetic cohort."""
    out = tmp_path_factory.mktemp("benchmark")
    assert main([*SYNTHETIC, "--out", str(out)]) == 0
    return out


def summary_of(out):
    return pd.read_csv(out / "summary.csv")


def refused(capsys, *arguments):
    """The message of a call that is refused."""
    assert main(list(arguments)) == 2
    return capsys.readouterr().err


def write_legacy(folder, names, rng):
    """Sections of legacy Spatial Transcriptomics, 6 × 5 spots and 12 genes each; red drives half of the genes."""
    spots = [(x, y) for x in range(2, 8) for y in range(2, 7)]
    for kind in ("ST-cnts", "ST-imgs", "ST-spotfiles"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for name in names:
        field = rng.normal(size=len(spots))
        pixels = rng.integers(180, 200, (270, 270, 3)).astype(np.uint8)
        for (x, y), value in zip(spots, field, strict=True):
            pixels[y * 30 - 12 : y * 30 + 12, x * 30 - 12 : x * 30 + 12, 0] = np.clip(150 + 30 * value, 0, 255)
        rate = np.exp(np.outer(field, np.tile([0.5, 0.0], 6)))
        counts = rng.poisson(3000 * rate / rate.sum(axis=1, keepdims=True))
        table = pd.DataFrame(counts, index=[f"{x}x{y}" for x, y in spots], columns=[f"G{i}" for i in range(12)])
        table.to_csv(folder / "ST-cnts" / f"{name}.tsv.gz", sep="\t")
        Image.fromarray(pixels).save(folder / "ST-imgs" / f"{name}.jpg", quality=95)
        frame = pd.DataFrame(spots, columns=["x", "y"])
        frame = frame.assign(pixel_x=frame.x * 30.0, pixel_y=frame.y * 30.0, selected=1)
        frame.to_csv(folder / "ST-spotfiles" / f"{name}_selection.tsv", sep="\t", index=False)


def write_hest(folder, names, rng, folds):
    """A task of HEST-Benchmark: 25 spots with patches and one without, 30 genes, two pixels for each µm."""
    import h5py

    for kind in ("adata", "patches", "splits"):
        (folder / kind).mkdir(parents=True)
    grid = np.stack(np.meshgrid(np.arange(6), np.arange(5)), axis=-1).reshape(-1, 2)[:26]
    places = 400.0 + 200.0 * grid
    for name in names:
        field = rng.normal(size=len(grid))
        crops = rng.integers(120, 180, (len(grid), 32, 32, 3)).astype(np.uint8)
        crops[..., 0] = np.clip(150 + 30 * field, 0, 255)[:, None, None]
        rate = np.exp(np.outer(field, np.tile([0.5, 0.0], 15)))
        counts = rng.poisson(20 * rate).astype(np.float32)
        table = ad.AnnData(counts, obsm={"spatial": places})
        table.obs_names = [f"bar{i}" for i in range(len(grid))]
        table.var_names = [f"G{i}" for i in range(30)]
        table.write_h5ad(folder / "adata" / f"{name}.h5ad")
        with h5py.File(folder / "patches" / f"{name}.h5", "w") as file:
            order = rng.permutation(25)
            file["img"] = crops[order]
            file["coords"] = places[order] - 112
            file["barcode"] = np.array([[f"bar{i}".encode()] for i in order])
    for number, test in enumerate(folds):
        for kind, members in (("test", test), ("train", [name for name in names if name not in test])):
            pd.DataFrame({"sample_id": members}).to_csv(folder / "splits" / f"{kind}_{number}.csv", index=False)
    (folder / "var_50genes.json").write_text(json.dumps({"genes": [f"G{i}" for i in range(10)]}))


def test_published_cohorts_have_the_published_sizes():
    sizes = {name: (cohort.n_sections, cohort.n_patients) for name, cohort in cohorts.COHORTS.items()}
    assert sizes["her2st"] == (36, 8)
    assert sizes["cscc"] == (12, 4)
    assert sizes["stnet"] == (68, 23)
    assert sizes["liver"] == (4, 1)
    tasks = {"IDC": 4, "PRAD": 23, "PAAD": 3, "SKCM": 2, "COAD": 4, "READ": 4, "CCRCC": 24, "LUNG": 2, "LYMPH_IDC": 4}
    assert {name: sizes[f"hest:{name}"][0] for name in tasks} == tasks
    assert set(protocols.get("hest-bench").cohorts) == {f"hest:{name}" for name in tasks}


@pytest.mark.parametrize("protocol", protocols.PROTOCOLS.values(), ids=list(protocols.PROTOCOLS))
def test_protocols_name_cohorts_and_sections_that_there_are(protocol):
    for name in protocol.cohorts:
        assert set(protocol.sections) <= set(cohorts.get(name).sections)
    assert protocol.smooth in (0, 8)


def test_published_values_stand_beside_the_protocol_they_were_reached_with():
    assert published("her2st", "lopo-smooth").scores["TRIPLEX"] == (0.304, 0.491)
    assert published("cscc", "lopo-smooth").scores["DKAN"] == (0.407, 0.508)
    assert published("stnet", "8-fold-smooth").scores["ST-Net"] == (0.081, 0.192)
    assert published("hest:IDC", "hest-bench").scores["UNI"] == (0.386, None)
    assert published("her2st", "lopo") is None


def test_scores_are_those_of_a_cross_validation(finished):
    study = ig.datasets.synthetic_cohort(n_patients=3, n_sections=2, n_spots=40, n_genes=80)
    ig.pp.extract_patches(study)
    ig.pp.embed_patches(study, "sparse")
    direct = ig.tl.cross_validate(study, "ridge", genes=20, seed=0)
    stored = pd.read_csv(finished / "synthetic-lopo.csv")
    assert set(stored["model"]) == set(direct.models)
    keys = ["model", "section", "gene"]
    joined = stored.merge(direct.scores, on=keys)
    assert len(joined) == len(stored) == len(direct.scores)
    np.testing.assert_allclose(joined["pcc_x"], joined["pcc_y"], atol=1e-5)


def test_summary_says_what_scores_mean(finished):
    table, page = summary_of(finished), (finished / "summary.md").read_text()
    assert set(table["scope"]) == {"between patients"}
    assert not table["restricted"].any()
    assert {"ridge", "ridge, not centred", "feature k-NN", "training mean", "permutation null"} <= set(table["model"])
    ridge = table[(table["model"] == "ridge") & (table["genes"] == "all")]["pcc"].item()
    assert f"{ridge:.3f}" in page
    assert "**Scope: between patients.**" in page
    assert "6 of 6 sections (P1_S1" in page
    assert "restricted run**" not in page


def test_a_second_call_neither_trains_nor_embeds(finished, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("computed again")

    monkeypatch.setattr(Task, "run", forbidden)
    monkeypatch.setattr(ig.pp, "embed_patches", forbidden)
    before = summary_of(finished)
    assert main([*SYNTHETIC, "--out", str(finished)]) == 0
    pd.testing.assert_frame_equal(summary_of(finished), before)


def test_an_interrupted_call_goes_on_and_another_model_is_all_that_is_added(finished, monkeypatch):
    trained = []
    run = Task.run

    def counted(task):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append((task.label, task.fold.name))
        return run(task)

    call = [*SYNTHETIC, "--models", "ridge", "ridge:n_components=2,center=none", "--out", str(finished)]
    monkeypatch.setattr(Task, "run", counted)
    with pytest.raises(KeyboardInterrupt):
        main(call)
    assert {label for label, _ in trained} == {"ridge:n_components=2,center=none"}
    monkeypatch.setattr(Task, "run", lambda task: trained.append((task.label, task.fold.name)) or run(task))
    assert main(call) == 0
    assert sorted(fold for _, fold in trained) == ["P1", "P2", "P3"]
    assert list(summary_of(finished)["model"].unique())[:2] == ["ridge", "ridge:n_components=2,center=none"]


def test_several_seeds_are_shown_with_their_spread(finished):
    assert main([*SYNTHETIC, "--models", "ridge", "--seeds", "0", "1", "--out", str(finished)]) == 0
    table = summary_of(finished)
    assert set(table["seed"]) == {0, 1}
    rows = table[(table["genes"] == "all") & (table["model"] == "ridge")]
    mean, sd = rows["pcc"].mean(), rows["pcc"].std()
    # The scores of a ridge do not depend on the seed, and so does its interval.
    low, high = rows[["low", "high"]].iloc[0]
    row = next(line for line in (finished / "summary.md").read_text().splitlines() if line.startswith("| ridge  "))
    assert f"{mean:.3f} ± {sd:.3f} [{low:.3f}, {high:.3f}]" in row


def test_the_interval_over_patients_is_that_of_their_means_over_seeds(finished):
    scores = pd.read_csv(finished / "synthetic-lopo.csv").query("seed == 0").reset_index(drop=True)
    shifts = np.random.default_rng(0).normal(scale=0.1, size=(3, len(scores)))
    seeds = {
        seed: CrossValidation(
            scores.assign(pcc=scores["pcc"] + shift), pd.DataFrame(), pd.DataFrame(), "between patients"
        )
        for seed, shift in enumerate(shifts)
    }
    averaged = scores.assign(pcc=scores["pcc"] + shifts.mean(axis=0)).query("model == 'ridge'")
    units = averaged.groupby(["patient", "section"])["pcc"].mean().groupby("patient").mean()
    interval = intervals(Outcome(None, None, seeds))["ridge"]
    np.testing.assert_allclose(interval, mean_interval(units.to_numpy())[1:])


def test_parameters_that_a_model_refuses_are_reported_without_a_traceback(tmp_path, capsys, monkeypatch):
    message = refused(capsys, *SYNTHETIC, "--models", "ridge:penalty=abc", "--out", str(tmp_path))
    assert "--models ridge:penalty=abc: " in message and "abc" in message
    monkeypatch.setattr(ig.tl, "cross_validate", lambda *args, **kwargs: 1 / 0)
    message = refused(capsys, *SYNTHETIC, "--models", "ridge", "--out", str(tmp_path))
    assert "synthetic, lopo: ZeroDivisionError: division by zero" in message


def test_restricted_runs_are_marked_and_missing_sections_named(tmp_path):
    write_legacy(tmp_path / "her2st", ("B1", "C1", "C2"), np.random.default_rng(0))
    (tmp_path / "her2st" / "ST-imgs" / "C2.jpg").rename(tmp_path / "elsewhere.jpg")
    inventory = cohorts.get("her2st").find(tmp_path)
    assert inventory.present == ("B1", "C1")
    assert inventory.restricted()
    out = tmp_path / "out"
    call = ["--cohort", "all", "--data", str(tmp_path), "--encoder", "sparse", "--genes", "12", "--out", str(out)]
    assert main([*call, "--protocol", "lopo-smooth", "B4-to-C3"]) == 0
    table, page = summary_of(out), (out / "summary.md").read_text()
    assert table["restricted"].all()
    assert "A1, A2" in table["missing"].iloc[0]
    assert "## her2st, lopo-smooth (restricted)" in page
    assert "2 of 36 sections (B1, C1) from 2 of 8 patients; missing: A1," in page
    assert "**not comparable**: restricted run, other genes" in page
    assert "Genes: 12. **The protocol uses other genes** (250)." in page
    assert "DKAN" in page
    # Protocols that cannot run are listed with their missing sections.
    assert "her2st, B4-to-C3: 0 of 2 sections (none); missing: B4, C3." in page
    assert "cscc: no section present; expected cscc/" in page
    assert set(table["smooth"]) == {8}


def test_tasks_of_hest_benchmark_run_on_their_own_folds_and_genes(tmp_path):
    folds = [["NCBI681"], ["NCBI682"], ["NCBI683", "NCBI684"]]
    folder = tmp_path / "hest" / "LYMPH_IDC"
    write_hest(folder, [name for fold in folds for name in fold], np.random.default_rng(1), folds)
    out = tmp_path / "out"
    call = ["--cohort", "hest:LYMPH_IDC", "--data", str(tmp_path), "--encoder", "sparse", "--out", str(out)]
    assert main([*call, "--protocol", "hest-bench"]) == 0
    scores = pd.read_csv(out / "hest-LYMPH_IDC-hest-bench.csv")
    assert set(scores["gene"]) == {f"G{i}" for i in range(10)}
    assert dict(zip(scores["section"], scores["fold"], strict=True)) == hest.splits(folder)
    assert set(scores["n_spots"]) == {25}
    probe = scores[scores["model"] == "ridge, not centred"].groupby("gene")["pcc"].mean()
    # Genes with an even number follow the red of their own patch.
    assert probe[[f"G{i}" for i in range(0, 10, 2)]].min() > 0.6
    page = (out / "summary.md").read_text()
    assert "between patients" in page
    assert "H-optimus-1" in page


def test_patches_of_hest_benchmark_are_joined_with_their_spots(tmp_path):
    write_hest(tmp_path / "IDC", ["TENX95"], np.random.default_rng(1), [])
    sdata, crops = hest.read_section(tmp_path / "IDC", "TENX95", None)
    table = sdata["table"]
    stored = ad.read_h5ad(tmp_path / "IDC" / "adata" / "TENX95.h5ad")
    barcodes = [name.removeprefix("TENX95_") for name in table.obs_names]
    np.testing.assert_array_equal(table.X.toarray(), stored[barcodes].X)
    np.testing.assert_array_equal(table.obs["library_size"], stored[barcodes].X.sum(axis=1))
    red, driven = crops[:, 0, 0, 0].astype(float), table.X.toarray()[:, ::2].sum(axis=1)
    assert np.corrcoef(red, np.log1p(driven))[0, 1] > 0.8
    # 112 px from the corner of a patch to its spot are 56 µm.
    patches = json.loads(table.uns["img2gene"]["patches"])
    assert patches["regions"]["TENX95_spots"]["mpp"] == pytest.approx(0.5)
    boxes = table.obsm["patch_bbox"]
    np.testing.assert_allclose((boxes[:, :2] + boxes[:, 2:])[:, ::-1] / 2, stored[barcodes].obsm["spatial"])


def test_metadata_of_hest_supply_patients_and_microns(tmp_path):
    write_hest(tmp_path / "hest" / "IDC", ["TENX95", "TENX99"], np.random.default_rng(1), [["TENX95"], ["TENX99"]])
    inventory = cohorts.get("hest:IDC").find(tmp_path)
    assert inventory.patients == {"TENX95": "split0", "TENX99": "split1"}
    pd.DataFrame(
        {
            "id": ["TENX95", "TENX99"],
            "patient": ["1", "1"],
            "dataset_title": ["a", "b"],
            "pixel_size_um_estimated": 0.25,
        }
    ).to_csv(tmp_path / "hest" / "HEST_v1_1_0.csv", index=False)
    inventory = cohorts.get("hest:IDC").find(tmp_path)
    assert inventory.patients == {"TENX95": "a 1", "TENX99": "b 1"}
    record = json.loads(inventory.read("TENX95").sdata["table"].uns["img2gene"]["patches"])
    assert record["regions"]["TENX95_spots"]["mpp"] == 0.25


def test_folds_of_hest_that_are_no_partition_are_refused(tmp_path, capsys):
    names = ["TENX95", "TENX99"]
    write_hest(tmp_path / "hest" / "IDC", names, np.random.default_rng(1), [["TENX95"], names])
    call = ("--cohort", "hest:IDC", "--data", str(tmp_path), "--out", str(tmp_path / "out"))
    assert "holds out TENX95, which another fold also holds out" in refused(capsys, *call)


def test_patients_are_read_from_a_list_where_they_are_not_known(tmp_path, capsys):
    write_legacy(tmp_path / "stnet", ("S1", "S2"), np.random.default_rng(0))
    call = ("--cohort", "stnet", "--protocol", "8-fold", "--data", str(tmp_path), "--out", str(tmp_path / "out"))
    message = refused(capsys, *call)
    assert "the patient of S1, S2 is not known" in message
    assert "patients.csv (section,patient)" in message
    (tmp_path / "stnet" / "patients.csv").write_text("section,patient\nS1,a\nS2,b\n")
    inventory = cohorts.get("stnet").find(tmp_path)
    assert inventory.patients == {"S1": "a", "S2": "b"}
    assert inventory.describe().endswith("from 2 of 23 patients; missing: sections whose names are not known.")
    assert main([*call, "--encoder", "sparse", "--genes", "12"]) == 0


def test_errors_for_unknown_names_list_the_known_names(tmp_path, capsys):
    out = ("--out", str(tmp_path))
    assert "No cohort 'her2' (near: her2st)" in refused(capsys, "--cohort", "her2", *out)
    assert "No protocol 'leave' (available: lopo" in refused(
        capsys, "--cohort", "synthetic", "--protocol", "leave", *out
    )
    message = refused(capsys, *SYNTHETIC, "--models", "rige", "ridge:components=3", "ridge:3", *out)
    assert "No model 'rige' (near: ridge)" in message
    assert "`ridge` has no parameter components (available:" in message
    assert "expected parameter=value, got '3'" in message
    assert "efficientnet-lite0" in refused(capsys, *SYNTHETIC, "--encoder", "vgg", *out)
    assert "These protocols are for stnet." in refused(capsys, "--cohort", "synthetic", "--protocol", "8-fold", *out)
    assert not list(tmp_path.iterdir())


def test_numbers_that_make_no_sense_are_refused_together(tmp_path, capsys):
    message = refused(capsys, *SYNTHETIC, "--jobs", "0", "--genes", "0", "--seeds", "-1", "--out", str(tmp_path))
    assert all(name in message for name in ("3 problems", "--jobs 0", "--genes 0", "--seeds"))


def test_a_folder_without_cohorts_raises_an_error_that_lists_the_expected_files(tmp_path, capsys):
    for data in (tmp_path, tmp_path / "nowhere"):
        message = refused(capsys, "--data", str(data), "--out", str(tmp_path / "out"))
        assert "holds no section of these cohorts" in message
        assert "her2st: her2st/ with ST-cnts/<section>.tsv.gz" in message
        assert "adata/<section>.h5ad" in message


def test_a_broken_section_is_reported_and_the_other_protocols_run(tmp_path, capsys):
    write_legacy(tmp_path / "her2st", ("B1", "C1"), np.random.default_rng(0))
    (tmp_path / "her2st" / "ST-imgs" / "B1.jpg").write_bytes(b"no image")
    call = ["--cohort", "synthetic", "her2st", "--protocol", "lopo", "--encoder", "sparse", "--genes", "10"]
    out = tmp_path / "out"
    assert "cannot be read as an image (cannot identify image file" in refused(
        capsys, *call, "--data", str(tmp_path), "--out", str(out)
    )
    assert set(summary_of(out)["cohort"]) == {"synthetic"}
    assert "cannot identify image file" in (out / "summary.md").read_text()


def test_models_are_parsed():
    assert parse_model("ridge") == ("ridge", {})
    assert parse_model("ridge:n_components=10,center=none") == ("ridge", {"n_components": 10, "center": "none"})


def test_help_is_quick_to_load():
    heavy = {"torch", "pandas", "spatialdata", "anndata", "sklearn"}
    code = f"import sys, img2gene.benchmark.__main__ as m; m.parser().format_help(); print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_list_shows_the_present_sections(tmp_path, capsys):
    write_legacy(tmp_path / "her2st", ("B1",), np.random.default_rng(0))
    assert main(["--list", "--data", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "1 of 36 sections (B1) from 1 of 8 patients; missing: A1" in text
    assert "absent; expected cscc/" in text
    assert "hest-bench" in text


@pytest.mark.real
def test_presets_know_which_real_sections_are_there(data):
    inventory = cohorts.get("her2st").find(data)
    assert inventory.present == ("B4", "C2", "C3", "C4", "C5", "C6")
    assert inventory.restricted()
    assert not any(
        inventory.restricted(protocols.get(name).sections) for name in ("sections-of-C", "B4-to-C3", "C-to-B4")
    )
    assert not cohorts.get("mob").find(data).restricted()
    organoids = cohorts.get("lung-organoid").find(data)
    assert not organoids.restricted()
    assert organoids.problem("section") is None
    assert "patients.csv" in organoids.problem("patient")


@pytest.mark.real
def test_a_preset_runs_on_real_sections(data, tmp_path):
    call = ["--cohort", "her2st", "--protocol", "B4-to-C3", "--data", str(data), "--encoder", "sparse", "--genes", "20"]
    assert main([*call, "--out", str(tmp_path)]) == 0
    table, scores = summary_of(tmp_path), pd.read_csv(tmp_path / "her2st-B4-to-C3.csv")
    assert set(scores["section"]) == {"C3"}
    assert scores["gene"].nunique() == 20
    assert set(table["scope"]) == {"between patients"}
    assert not table["restricted"].any()


def test_a_list_of_patients_without_its_columns_is_refused(tmp_path, capsys):
    write_legacy(tmp_path / "stnet", ("S1", "S2"), np.random.default_rng(0))
    (tmp_path / "stnet" / "patients.csv").write_text("slide,donor\nS1,a\nS2,b\n")
    message = refused(capsys, "--cohort", "stnet", "--data", str(tmp_path), "--out", str(tmp_path / "out"))
    assert "columns section and patient not found (available: slide, donor)" in message


def test_sections_that_fit_no_protocol_are_refused(tmp_path, capsys):
    write_legacy(tmp_path / "her2st", ("B1",), np.random.default_rng(0))
    message = refused(capsys, "--data", str(tmp_path), "--out", str(tmp_path / "out"))
    assert "No protocol can run" in message
