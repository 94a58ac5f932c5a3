"""The main job on real sections, at the accuracy that a quick slide-centred ridge is known to reach."""

import json

import numpy as np
import pytest
import spatialdata_io

import img2gene as ig
from img2gene.benchmark.layouts import find_arrays, find_legacy, read_array, read_legacy

pytestmark = [
    pytest.mark.real,
    # spatialdata-io's own reading of Visium folders
    pytest.mark.filterwarnings("ignore:Variable names are not unique:UserWarning"),
    pytest.mark.filterwarnings("ignore:Converting `region_key:UserWarning"),
]

GROUPS = {"HEG-250": ("mean", 250), "HVG-50": ("variance", 50)}


def _bulbs(data):
    names = ("MOB1", "MOB2")
    sdata = ig.io.concat_sections(
        ig.io.read_legacy_st(
            data / "mob_st" / f"{name}_counts.tsv.gz", data / "mob_st" / f"{name}.jpg", section=name, patient=name
        )
        for name in names
    )
    ig.pp.extract_patches(sdata)
    ig.pp.embed_patches(sdata, orientations=1)
    return sdata


def test_each_olfactory_bulb_predicts_the_other(data):
    bulbs = _bulbs(data)
    for train, test, heg, hvg in (("MOB1", "MOB2", 0.305, 0.564), ("MOB2", "MOB1", 0.344, 0.588)):
        ig.tl.fit(bulbs, "ridge", genes=1000, train_on=[train], validate_on=[test])
        ig.tl.predict(bulbs)
        scores = ig.tl.summarize(ig.tl.evaluate(bulbs, gene_groups=GROUPS)).set_index(["model", "genes"])["pcc"]
        assert scores["ridge", "HEG-250"] > heg
        assert scores["ridge", "HVG-50"] > hvg
        assert abs(scores["permutation null", "HEG-250"]) < 0.02
        assert ig.get.model(bulbs).report["patients"] == [train]


def test_visium_sections_need_no_special_handling(data):
    folder = data / "lung_organoid_visium"
    names = sorted(path.name for path in folder.iterdir())
    sdata = ig.io.concat_sections(spatialdata_io.visium(folder / name, dataset_id=name) for name in names)
    ig.pp.extract_patches(sdata, patch_um=400, patch_px=64)
    ig.pp.embed_patches(sdata, orientations=1)
    ig.tl.fit(sdata, "ridge", genes=250, groups="section", validate_on=names[:1])
    ig.tl.predict(sdata)
    scores = ig.tl.evaluate(sdata)
    ridge = scores[scores["model"] == "ridge"]
    assert set(ridge["section"]) == {names[0]}
    # What spatialdata-io reads does not name the donors, so one may be on both sides.
    assert ridge["leakage"].isna().all()
    assert ridge["pcc"].mean() > 0.1


def test_a_space_ranger_folder_with_an_rgba_image_is_read(data):
    folder = data / "formats" / "visium"
    sdata = spatialdata_io.visium(folder, dataset_id="tiny")
    ig.pp.extract_patches(sdata, spot_um=55)
    boxes = sdata["table"].obsm["patch_bbox"]
    assert boxes.shape == (2695, 4)
    scale = json.loads((folder / "spatial" / "scalefactors_json.json").read_text())["tissue_hires_scalef"]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    np.testing.assert_allclose(centres, sdata["table"].obsm["spatial"][:, ::-1] * scale, atol=1)
    assert ig.get.patches(sdata, [0]).shape == (1, *(boxes[0, 2:] - boxes[0, :2]), 3)


def _misplaced(sdata, caplog):
    """Warnings of spots that seem to lie in wrong places."""
    caplog.clear()
    ig.pp.extract_patches(sdata)
    return [record.getMessage() for record in caplog.records if "patches of region" in record.getMessage()]


def _swap(sdata):
    """Exchange x and y of all spots."""
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import get_transformation

    (key,) = sdata.shapes
    spots = sdata[key]
    xy = np.column_stack([spots.geometry.y, spots.geometry.x])
    transformations = get_transformation(spots, get_all=True)
    sdata[key] = ShapesModel.parse(
        xy, geometry=0, radius=spots["radius"].to_numpy(), index=spots.index, transformations=transformations
    )


def test_swapped_positions_are_named_on_real_sections_and_right_ones_are_not(data, caplog):
    her2st, bulbs, organoids = data / "her2st", data / "mob_st", data / "lung_organoid_visium"
    sections = [read_legacy(her2st, name, None) for name in find_legacy(her2st)]
    sections += [read_array(bulbs, name, None) for name in find_arrays(bulbs)]
    sections += [ig.io.read_visium(folder) for folder in sorted(organoids.iterdir())]
    assert len(sections) == 12
    silent = []
    for sdata in sections:
        assert not _misplaced(sdata, caplog)
        _swap(sdata)
        silent += [] if _misplaced(sdata, caplog) else sdata["table"].obs["section"].unique().tolist()
    # One bulb looks much the same along its diagonal.
    assert silent == ["MOB1"]
