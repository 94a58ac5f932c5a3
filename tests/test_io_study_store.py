"""Writing a study: whole or not at all, also over the store it was read from."""

import os
import shutil
import signal
import subprocess
import sys
import time
import warnings

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import pytest
from spatialdata import SpatialData, read_zarr
from spatialdata.models import Image2DModel, Labels2DModel, PointsModel
from spatialdata.transformations import Identity, Scale, set_transformation

import img2gene as ig
from img2gene._errors import Img2GeneError
from img2gene.io import study_store
from img2gene.io._comparison import study_differences


def rich_study(trained_study, copy_of):
    """A study with elements of every kind, values of many types, and a model."""
    study = copy_of(trained_study).subset(["A1_image", "A1_spots"])
    table = study["table"]
    table.obs["text"] = np.resize(["a", "b"], table.n_obs)
    table.obs["gaps"] = pd.array(np.resize([True, None], table.n_obs), dtype="boolean")
    table.obs["level"] = pd.Categorical(np.resize(["low", "high"], table.n_obs), ordered=True)
    table.uns["settings"] = {"n": 5, "names": ["x", "y"], "nested": {"flag": True, "none": None, "empty": {}}}
    table.obsm["frame"] = pd.DataFrame({"u": np.arange(table.n_obs), "v": np.nan}, index=table.obs_names)
    study.labels["nuclei"] = Labels2DModel.parse(np.eye(50, dtype=int), dims=("y", "x"))
    study.images["pyramid"] = Image2DModel.parse(
        np.random.default_rng(0).random((3, 64, 64)), dims=("c", "y", "x"), scale_factors=[2], c_coords=["b", "g", "r"]
    )
    points = pd.DataFrame({"x": [1.0, 2.0], "y": [3.0, 4.0], "gene": ["A", "B"]})
    study.points["transcripts"] = PointsModel.parse(points, coordinates={"x": "x", "y": "y"}, feature_key="gene")
    study.attrs["cohort"] = "pilot"
    return study


@pytest.fixture
def rich(trained_study, copy_of):
    return rich_study(trained_study, copy_of)


@pytest.fixture(scope="module")
def stored(trained_study, copy_of, tmp_path_factory):
    """A study and the store it was written to; not to be changed."""
    path = tmp_path_factory.mktemp("stored") / "study.zarr"
    study = rich_study(trained_study, copy_of)
    ig.io.write_study(study, path)
    return study, path


def test_everything_is_read_back_as_it_was(stored):
    study, path = stored
    again = read_zarr(path)
    assert study_differences(study, again) == []
    assert ig.get.model(again).fingerprint == ig.get.model(study).fingerprint
    assert study.path == path
    assert [item.name for item in path.parent.iterdir()] == ["study.zarr"]


def test_a_study_is_written_over_the_store_it_was_read_from(rich, tmp_path):
    path = tmp_path / "study.zarr"
    ig.io.write_study(rich, path)
    study = read_zarr(path)
    before = study["A1_image"].to_numpy()
    # A lazy result of the stored pixels, in chunks of its own, must not read the new store and be applied twice.
    study.images["A1_image"] = Image2DModel.parse(
        255 - study["A1_image"].data.rechunk((3, 50, 70)), dims=("c", "y", "x")
    )
    study["table"].obs["new"] = np.arange(study["table"].n_obs)
    del study.points["transcripts"]
    for _ in range(2):
        ig.io.write_study(study, path)
        np.testing.assert_array_equal(study["A1_image"].to_numpy(), 255 - before)
        again = read_zarr(path)
        np.testing.assert_array_equal(again["A1_image"].to_numpy(), 255 - before)
        assert study_differences(again, study) == []
        assert again["table"].obs["new"].tolist() == list(range(study["table"].n_obs))
        assert "transcripts" not in again.points
    assert study.is_self_contained()
    assert [item.name for item in tmp_path.iterdir()] == ["study.zarr"]


@pytest.mark.parametrize(("step", "kind"), [("_write", KeyboardInterrupt), ("_verify", ValueError), ("_swap", OSError)])
def test_an_interrupted_call_leaves_the_old_store(rich, tmp_path, monkeypatch, step, kind):
    path = tmp_path / "study.zarr"
    ig.io.write_study(rich, path)
    rich["table"].obs["new"] = 1
    original = getattr(study_store, step)

    def interrupted(*arguments):
        if step != "_swap":
            original(*arguments)
        raise kind("stop")

    monkeypatch.setattr(study_store, step, interrupted)
    with pytest.raises((KeyboardInterrupt, Img2GeneError, ValueError)):
        ig.io.write_study(rich, path)
    assert "new" not in read_zarr(path)["table"].obs
    assert [item.name for item in tmp_path.iterdir()] == ["study.zarr"]


def test_a_value_that_does_not_survive_is_named(rich, tmp_path, monkeypatch):
    path = tmp_path / "study.zarr"
    ig.io.write_study(rich, path)
    original = study_store._write

    def lossy(sdata, folder):
        changed = SpatialData(
            images=dict(sdata.images), shapes=dict(sdata.shapes), tables={"table": sdata["table"].copy()}
        )
        changed["table"].X[0, 0] += 1
        changed["table"].obs["text"] = "a"
        original(changed, folder)

    monkeypatch.setattr(study_store, "_write", lossy)
    with pytest.raises(Img2GeneError, match=r"labels\['nuclei'\].*points\['transcripts'\].*tables\['table'\].X"):
        ig.io.write_study(rich, path)
    assert study_differences(rich, read_zarr(path)) == []


def test_what_cannot_be_written_leaves_the_old_store(rich, tmp_path):
    path = tmp_path / "study.zarr"
    ig.io.write_study(rich, path)
    rich["table"].uns["model"] = object()
    with pytest.raises(Img2GeneError, match="cannot be written"):
        ig.io.write_study(rich, path)
    assert ig.get.model(read_zarr(path)).name == "ridge"


def other_first_spot(obs):
    # In the newest pandas, arrays of a column cannot be written to.
    obs.loc[obs.index[0], "spot_id"] = 99


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda s: s["table"].obsm["X_tiny"].__setitem__((0, 0), 9), "tables['table'].obsm['X_tiny']"),
        (lambda s: s["table"].X.data.__setitem__(0, 999), "tables['table'].X"),
        (lambda s: s["table"].obs.pop("text"), "tables['table'].obs['text']"),
        (lambda s: other_first_spot(s["table"].obs), "tables['table'].obs['spot_id']"),
        (lambda s: s["table"].uns["settings"]["nested"].pop("flag"), "tables['table'].uns['settings']"),
        (
            lambda s: s["table"].uns["img2gene"]["model"]["weights"].__setitem__(500, 77),
            "tables['table'].uns['img2gene']",
        ),
        (lambda s: s["table"].layers["img2gene"].__setitem__((0, 0), 9), "tables['table'].layers['img2gene']"),
        (lambda s: s["A1_spots"].__setitem__("radius", 1.0), "shapes['A1_spots']"),
        (lambda s: s["A1_image"].data.__setitem__((0, 5, 5), 1), "images['A1_image']"),
        (lambda s: set_transformation(s["A1_image"], Scale([2, 2], ("x", "y")), "A1"), "images['A1_image']"),
        (lambda s: set_transformation(s["A1_spots"], Identity(), "other"), "shapes['A1_spots']"),
        (lambda s: s["A1_image"].coords.__setitem__("c", ["b", "g", "r"]), "images['A1_image']"),
        (lambda s: s.labels.pop("nuclei"), "labels['nuclei']"),
        (lambda s: s.points.pop("transcripts"), "points['transcripts']"),
        (lambda s: s.attrs.pop("cohort"), "attrs"),
    ],
)
def test_each_difference_is_noticed(stored, spoil, expected):
    study, path = stored
    again = read_zarr(path)
    spoil(again)
    assert study_differences(study, again) == [expected]


def test_leftovers_of_killed_processes_are_removed_and_of_living_ones_stay(rich, tmp_path):
    path = tmp_path / "study.zarr"
    dead = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from img2gene._files.locks import temporary_path as t; from pathlib import Path; t(Path({str(path)!r})).mkdir()",
        ],
        check=True,
    )
    assert dead.returncode == 0
    own = study_store.temporary_path(path)
    own.mkdir()
    other = tmp_path / "study.zarr.notes"
    other.mkdir()
    assert len(list(tmp_path.iterdir())) == 3
    ig.io.write_study(rich, path)
    assert sorted(item.name for item in tmp_path.iterdir()) == sorted(["study.zarr", own.name, "study.zarr.notes"])


def test_without_swapping_folders_the_old_store_is_found_again(rich, tmp_path, monkeypatch):
    """Where folders cannot be swapped in one step, a kill can fall between two steps."""
    path = tmp_path / "study.zarr"
    monkeypatch.setattr(study_store, "_exchange", lambda *_: False)
    for _ in range(2):
        ig.io.write_study(rich, path)
        assert [item.name for item in tmp_path.iterdir()] == ["study.zarr"]
    code = f"from img2gene._files.locks import temporary_path as t; from pathlib import Path; print(t(Path({str(path)!r})).name)"
    name = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    os.rename(path, tmp_path / f"{name}.old")
    study_store._clean(path)
    assert study_differences(rich, read_zarr(path)) == []


@pytest.mark.filterwarnings("ignore:Writing zarr v2:UserWarning")
def test_foreign_targets_are_refused_and_stay(rich, tmp_path):
    file, folder, foreign = tmp_path / "notes.txt", tmp_path / "folder", tmp_path / "table.zarr"
    file.write_text("x")
    folder.mkdir()
    (folder / "data.csv").write_text("x")
    ad.AnnData(np.ones((2, 2))).write_zarr(foreign)
    store = tmp_path / "study.zarr"
    ig.io.write_study(rich, store)
    for path, match in [
        (file, "is a file"),
        (folder, "holds no SpatialData store"),
        (foreign, "holds no SpatialData store"),
        (store / "tables", "lies in the Zarr store"),
        (store / "new", "lies in the Zarr store"),
        (tmp_path / "notes.txt" / "x.zarr", "cannot be written|cannot be used"),
        ("s3://bucket/study.zarr", "only folders of this computer"),
        ("/", "file or a root"),
    ]:
        with pytest.raises(Img2GeneError, match=match):
            ig.io.write_study(rich, path)
    assert file.read_text() == "x"
    assert (folder / "data.csv").read_text() == "x"
    assert ad.read_zarr(foreign).shape == (2, 2)
    with pytest.raises(Img2GeneError, match="exists; pass `overwrite=True`"):
        ig.io.write_study(rich, store, overwrite=False)


def test_an_empty_folder_a_link_and_a_half_written_store_are_replaced(rich, tmp_path):
    empty, half, real = tmp_path / "empty", tmp_path / "half", tmp_path / "real"
    empty.mkdir()
    ig.io.write_study(rich, half)
    shutil.copytree(half, real)
    (half / "zarr.json").write_text("{")
    link = tmp_path / "link"
    link.symlink_to(real)
    rich["table"].obs["new"] = 1
    for path in (empty, half, link):
        ig.io.write_study(rich, str(path))
        assert "new" in read_zarr(path)["table"].obs
    assert link.is_symlink()


@pytest.mark.parametrize("path", [None, 3, "", "a\0b", ["x"], b"x", np.nan])
def test_paths_that_are_none_are_refused(rich, path):
    with pytest.raises(Img2GeneError, match="path="):
        ig.io.write_study(rich, path)


@pytest.mark.parametrize("sdata", [None, {}, "study.zarr", 1])
def test_what_is_no_study_is_refused(sdata, tmp_path):
    with pytest.raises(Img2GeneError, match="(?s)2 problems.*expected a SpatialData.*overwrite=1"):
        ig.io.write_study(sdata, tmp_path / "x", overwrite=1)
    assert not list(tmp_path.iterdir())


KILLED = """
import sys, warnings
warnings.simplefilter("ignore")
from spatialdata import read_zarr
import img2gene as ig
path = sys.argv[1]
sdata = read_zarr(path)
print("ready", flush=True)
version = int(sdata["table"].uns["version"])
while True:
    version += 1
    sdata["table"].uns["version"] = version
    sdata.images["image"] = sdata["image"].copy(data=sdata["image"].data * 0 + version % 250)
    ig.io.write_study(sdata, path)
    print(version, flush=True)
"""


def test_a_kill_at_any_moment_leaves_a_whole_store(tmp_path):
    """A process writes over the store that it has read; the picture and the table always are of one version."""
    path = tmp_path / "study.zarr"
    table = ad.AnnData(np.ones((3, 2), np.float32))
    table.uns["version"] = 0
    image = Image2DModel.parse(da.zeros((3, 40, 40), dtype=np.uint8, chunks=(3, 20, 20)), dims=("c", "y", "x"))
    ig.io.write_study(SpatialData(images={"image": image}, tables={"table": table}), path)
    rng = np.random.default_rng(0)
    versions = []
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE)
        for _ in range(2):
            process.stdout.readline()
        time.sleep(rng.uniform(0, 2))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored = read_zarr(path)
        versions.append(int(stored["table"].uns["version"]))
        assert set(np.unique(stored["image"].to_numpy())) == {versions[-1] % 250}
    assert versions == sorted(set(versions))
    assert versions[0] > 0
    ig.io.write_study(SpatialData(images={"image": image}, tables={"table": table}), path)
    assert [item.name for item in tmp_path.iterdir()] == ["study.zarr"]


@pytest.fixture
def backed(make_study, tmp_path):
    """A study whose table is backed by a file, and the same study in memory."""
    study = make_study([("A1", "A"), ("B1", "B")], embed=False)
    study["table"].write_h5ad(tmp_path / "table.h5ad")
    table = ad.read_h5ad(tmp_path / "table.h5ad", backed="r")
    # AnnData reads lists as arrays, which spatialdata refuses.
    table.uns["spatialdata_attrs"]["region"] = list(table.uns["spatialdata_attrs"]["region"])
    return SpatialData(images=dict(study.images), shapes=dict(study.shapes), tables={"table": table}), study


def test_tables_that_are_backed_by_a_file_are_stored_joined_and_converted(backed, make_section, tmp_path):
    lazy, study = backed
    counts = study["table"].X.toarray()
    ig.io.write_study(lazy, tmp_path / "study.zarr")
    np.testing.assert_array_equal(read_zarr(tmp_path / "study.zarr")["table"].X.toarray(), counts)
    joined = ig.io.concat_sections([lazy, make_section("C1", "C")])["table"]
    np.testing.assert_array_equal(joined.X.toarray()[: len(counts)], counts)
    np.testing.assert_array_equal(ig.io.to_anndata(lazy).X.toarray(), counts)
    assert lazy["table"].isbacked


def test_a_table_that_was_filtered_in_place_is_stored_with_the_regions_that_are_left(make_study, tmp_path):
    study = make_study([("A1", "A"), ("B1", "B")], embed=False)
    table = study["table"]
    table._inplace_subset_obs((table.obs["patient"] == "B").to_numpy())
    ig.io.write_study(study, tmp_path / "study.zarr")
    stored = read_zarr(tmp_path / "study.zarr")
    assert list(stored["table"].uns["spatialdata_attrs"]["region"]) == ["B1_spots"]
    assert list(stored["table"].obs_names) == list(table.obs_names)
    assert sorted(stored.shapes) == ["A1_spots", "B1_spots"]


def test_known_warnings_of_libraries_are_left_out_and_all_others_are_shown(rich, tmp_path, monkeypatch):
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.simplefilter("error")
        ig.io.write_study(rich, tmp_path / "study.zarr")

    def warning(sdata, folder):
        warnings.warn("an array was rounded", UserWarning, stacklevel=2)
        sdata.write(folder)

    monkeypatch.setattr(study_store, "_write", warning)
    with pytest.warns(UserWarning, match="an array was rounded"):
        ig.io.write_study(rich, tmp_path / "other.zarr")
