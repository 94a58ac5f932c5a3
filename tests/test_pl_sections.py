"""Plots find sections that share an image, and sections that lie in several."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest

import img2gene as ig
from img2gene import _schema
from img2gene._study.study import Study
from img2gene.pl._tissue import canvases, matched_canvases


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def microarray(study):
    """Cores ``left`` and ``right`` in the one image of C1."""
    table = study["table"]
    rows = np.flatnonzero(table.obs["section"] == "C1")
    x = table.obsm["spatial"][rows, 0]
    names = table.obs["section"].astype(str).to_numpy()
    names[rows] = np.where(x < np.median(x), "left", "right")
    table.obs["section"] = names
    ig.tl.fit(study, "ridge", validate_on=["C"])
    ig.tl.predict(study)
    return study


def test_each_core_of_an_image_is_drawn_with_its_own_spots(microarray):
    shown = {canvas.name: canvas for canvas in canvases(Study.of(microarray), ["left", "right"])}
    table = microarray["table"]
    for name, canvas in shown.items():
        np.testing.assert_array_equal(np.sort(canvas.rows), np.flatnonzero(table.obs["section"] == name))
        height, width = canvas.picture.shape[:2]
        assert (canvas.xy >= 0).all()
        assert (canvas.xy <= [width, height]).all()
        # Only cropping and shrinking lie between the two.
        truth = table.obsm["spatial"][canvas.rows]
        slope = np.ptp(canvas.xy, axis=0) / np.ptp(truth, axis=0)
        np.testing.assert_allclose(canvas.xy - canvas.xy[0], (truth - truth[0]) * slope, atol=1e-6)
    whole = canvases(Study.of(microarray), ["A1"])[0]
    assert all(canvas.picture.shape[1] < whole.picture.shape[1] for canvas in shown.values())


def test_maps_of_cores_show_their_own_values(microarray):
    figure = ig.pl.prediction(microarray, "G00", sections=["left", "right"], residual=False)
    panels = [ax for ax in figure.axes if ax.get_title()]
    table = microarray["table"]
    for name, ax in zip(("left", "right"), panels[1::2], strict=True):
        expected = table.layers["img2gene"][(table.obs["section"] == name).to_numpy(), 0]
        drawn = np.asarray(ax.collections[0].get_array())
        np.testing.assert_allclose(np.sort(drawn), np.sort(expected), rtol=1e-5)


def test_a_section_over_several_regions_has_a_map_of_each(study):
    table = study["table"]
    regions = table.obs["region"].astype(str)
    table.obs["section"] = np.where(table.obs["section"].isin(["A1", "C1"]), "both", table.obs["section"].astype(str))
    shown = canvases(Study.of(study), ["both"])
    names = list(dict.fromkeys(regions[table.obs["section"] == "both"]))
    assert [canvas.name for canvas in shown] == [f"both ({name})" for name in names]
    assert {canvas.section for canvas in shown} == {"both"}
    for canvas, name in zip(shown, names, strict=True):
        assert set(regions.iloc[canvas.rows]) == {name}
    rows = np.flatnonzero(table.obs["section"] == "both")
    matched = matched_canvases(shown, table.obs_names, table.obs_names, rows)
    assert sorted(np.concatenate([canvas.rows for canvas in matched])) == rows.tolist()
    assert matched_canvases(shown[:1], table.obs_names, table.obs_names, rows) == []


def test_pixels_of_a_core_are_those_of_its_spots(microarray):
    rows = np.flatnonzero(microarray["table"].obs["section"] == "right")[:2]
    pixels = ig.get.patches(microarray, rows)
    boxes = microarray["table"].obsm[_schema.PATCH_BBOX][rows]
    image = np.asarray(microarray["C1_image"]).transpose(1, 2, 0)
    for window, (top, left, bottom, right) in zip(pixels, np.asarray(boxes, dtype=int), strict=True):
        if top >= 0 and left >= 0 and bottom <= image.shape[0] and right <= image.shape[1]:
            np.testing.assert_array_equal(window, image[top:bottom, left:right])


def test_a_report_draws_cores(microarray, tmp_path):
    page = ig.report(microarray, tmp_path / "page.html", sections=["left", "right"], n_genes=1).read_text()
    assert "left, right" in page


def test_numbers_name_sections_that_are_numbered(study):
    table = study["table"]
    table.obs["section"] = table.obs["section"].astype("category").cat.codes.to_numpy(dtype=int)
    ig.tl.fit(study, "ridge", validate_on=["C"])
    ig.tl.predict(study)
    number = table.obs["section"].unique()[-1]
    for sections in (number, [number], int(number), str(number)):
        titles = [ax.get_title() for ax in ig.pl.prediction(study, table.var_names[0], sections=sections).axes]
        assert any(str(number) in title for title in titles)
