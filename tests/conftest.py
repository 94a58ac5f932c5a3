"""Small sections whose image shows what drives their genes, and an encoder that costs nothing."""

import os
import shutil
import subprocess
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from spatialdata import SpatialData

import img2gene as ig
from img2gene.encoders import EncoderSpec
from img2gene.io.sections import build_section

DATA = Path(os.environ.get("IMG2GENE_DATA") or Path(__file__).parents[2] / "shared" / "data")
MPP, PITCH_PX, N_SIDE = 5.0, 20, 7
GENES = tuple(f"G{i:02d}" for i in range(12))


def pytest_collection_modifyitems(items):
    if not DATA.is_dir():
        for item in items:
            if item.get_closest_marker("real"):
                item.add_marker(pytest.mark.skip(reason=f"no real sections in {DATA}; set IMG2GENE_DATA"))


class MeanColour:
    """Mean and SD of each colour of a patch."""

    width = 6

    def __call__(self, patches, side=None):
        flat = patches.reshape(len(patches), -1, 3).astype(np.float64)
        return np.concatenate([flat.mean(axis=1), flat.std(axis=1)], axis=1).astype(np.float32)


def tiny_spec(name="tiny", **changes):
    values = {"width": 6, "input_px": 32, "any_size": True, "mpp": None, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    values |= {"licence": "BSD-3-Clause", "gated": False, "source": "tests", "revision": "1"}
    return EncoderSpec(name=name, build=lambda spec, **options: MeanColour(), **(values | changes))


@pytest.fixture(autouse=True, scope="session")
def tiny_encoder():
    spec = tiny_spec()
    ig.encoders.get("default")
    ig.encoders.register(spec)
    return spec


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(ig.settings, "progress", False)


@pytest.fixture
def chromium(tmp_path):
    """Run headless Chromium with some options and return what it prints; skipped where there is no browser."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None) or pytest.skip("no chromium on the path")
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"]
    command += [f"--user-data-dir={tmp_path / 'profile'}"]

    def run(*options, timeout=120):
        return subprocess.run([*command, *options], capture_output=True, timeout=timeout, check=True).stdout.decode()

    return run


@pytest.fixture(scope="session")
def data():
    """Folder of the real sections."""
    return DATA


def _lattice(n_side):
    rows, columns = np.meshgrid(np.arange(n_side), np.arange(n_side), indexing="ij")
    return (np.column_stack([columns.ravel(), rows.ravel()]) + 1.0) * PITCH_PX


def _smooth(shape, rng):
    """A field of unit SD that varies over some 50 pixels."""
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(rng.normal(size=shape), 14, mode="wrap")
    return (field - field.mean()) / field.std()


def _section(name="S1", patient="P1", *, seed=0, n_side=N_SIDE, genes=GENES, depth=4000.0, shift=0.0):
    """One section: red falls with a first field and green with a second, and so do two thirds of the genes.

    Gene i follows the first field (i % 3 = 0), the second one (1) or nothing (2). ``shift`` darkens the whole slide.
    """
    rng = np.random.default_rng(seed)
    side = (n_side + 1) * PITCH_PX
    fields = [_smooth((side, side), rng) for _ in range(2)]
    image = np.stack([150 - 30 * fields[0], 130 - 30 * fields[1], np.full((side, side), 160)], axis=-1) + shift
    image += rng.normal(scale=4, size=image.shape)
    xy = _lattice(n_side)
    columns, rows = xy.astype(int).T
    drivers = [fields[0][rows, columns], fields[1][rows, columns], np.zeros(len(xy))]
    rate = np.exp(np.stack([0.5 * drivers[i % 3] - 0.05 * i for i in range(len(genes))], axis=1))
    counts = rng.poisson(depth * rate / rate.sum(axis=1, keepdims=True)).astype(np.float32)
    table = ad.AnnData(
        sp.csr_matrix(counts),
        obs=pd.DataFrame(index=[f"{name}_{i}" for i in range(len(xy))]),
        var=pd.DataFrame(index=list(genes)),
    )
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    return build_section(pixels, xy, table, section=name, patient=patient, mpp=MPP, spot_um=55.0)


@pytest.fixture(scope="session")
def make_section():
    """Build one section: ``make_section(name, patient, seed=…, n_side=…, genes=…)``."""
    return _section


def _study(names=(("A1", "A"), ("A2", "A"), ("B1", "B"), ("C1", "C")), *, embed=True, **changes):
    parts = [_section(name, patient, seed=i, shift=8.0 * i, **changes) for i, (name, patient) in enumerate(names)]
    sdata = ig.io.concat_sections(parts)
    if embed:
        ig.pp.extract_patches(sdata, patch_um=60, patch_px=32)
        ig.pp.embed_patches(sdata, "tiny")
    return sdata


@pytest.fixture(scope="session")
def make_study():
    """Build a study: ``make_study([(section, patient), …], embed=…)``."""
    return _study


@pytest.fixture(scope="session")
def shared_study():
    """Four sections of the patients A (two), B and C, embedded; not to be changed."""
    return _study()


def _copy(sdata):
    tables = {key: table.copy() for key, table in sdata.tables.items()}
    return SpatialData(images=dict(sdata.images), labels=dict(sdata.labels), shapes=dict(sdata.shapes), tables=tables)


@pytest.fixture(scope="session")
def copy_of():
    """Copy an object: tables anew, elements shared."""
    return _copy


@pytest.fixture
def study(shared_study):
    """The embedded study, to be changed at will."""
    return _copy(shared_study)


@pytest.fixture(scope="session")
def trained_study(shared_study):
    """The study with a ridge trained on patients A and B and predictions for all; not to be changed."""
    sdata = _copy(shared_study)
    ig.tl.fit(sdata, "ridge", validate_on=["C"])
    ig.tl.predict(sdata)
    return sdata


def _snapshot(table):
    """Everything a function could have written, as comparable values."""
    parts = {f"obs/{key}": repr(table.obs[key].to_numpy().tolist()) for key in table.obs}
    parts |= {f"var/{key}": repr(table.var[key].to_numpy().tolist()) for key in table.var}
    parts |= {f"obsm/{key}": np.asarray(table.obsm[key]).tobytes() for key in table.obsm}
    parts |= {f"layers/{key}": np.asarray(table.layers[key]).tobytes() for key in table.layers if key is not None}
    return parts | {"uns": repr(table.uns), "X": table.X.toarray().tobytes(), "names": list(table.obs_names)}


@pytest.fixture(scope="session")
def snapshot():
    """Comparable content of a table: equal before and after a call that must not have changed anything."""
    return _snapshot
