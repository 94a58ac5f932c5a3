"""Predictions as pictures on the slide."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib_scalebar.scalebar import ScaleBar
from spatialdata import read_zarr
from spatialdata.models import Image2DModel
from spatialdata.transformations import get_transformation

import img2gene as ig
from img2gene._errors import Img2GeneError

mpl.use("Agg")


@pytest.fixture(scope="module")
def trained():
    sdata = ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=30, n_genes=40)
    ig.pp.extract_patches(sdata, patch_um=112)
    ig.pp.embed_patches(sdata, "color-texture")
    ig.tl.fit(sdata, "ridge")
    return ig.get.model(sdata)


@pytest.fixture
def slide(trained):
    sdata = ig.datasets.synthetic_cohort(n_patients=1, n_sections=1, n_spots=30, n_genes=40)
    ig.pp.tile_slide(sdata, "P1_S1_image", tile_um=100, patch_um=112)
    ig.pp.embed_patches(sdata, "color-texture", table_key="slide_tiles")
    ig.tl.predict(sdata, trained, table_key="slide_tiles", key_added="predicted")
    return sdata


def drawn(sdata, genes, **arguments):
    return ig.tl.rasterize_prediction(
        sdata, genes, key="predicted", table_key="slide_tiles", outside=None, inplace=False, **arguments
    )


def test_each_tile_is_one_pixel_at_its_place(slide, trained):
    genes = list(trained.genes[:2])
    ig.tl.rasterize_prediction(slide, genes, key="predicted", table_key="slide_tiles", outside=None)
    image = slide.images["P1_S1_predicted"]
    assert list(image.coords["c"].values) == genes
    table = slide["predicted"]
    assert np.isfinite(image.values[0]).sum() == table.n_obs
    # The centre of each pixel, by its own transformation, is the centre of the tile with this value.
    axes = ("x", "y")
    matrix = get_transformation(image, "P1_S1").to_affine_matrix(axes, axes)
    rows, columns = np.nonzero(np.isfinite(image.values[0]))
    places = np.column_stack([columns + 0.5, rows + 0.5]) @ matrix[:2, :2].T + matrix[:2, 2]
    values = {
        tuple(np.round(place, 1)): value for place, value in zip(places, image.values[1][rows, columns], strict=True)
    }
    expected = np.asarray(table[:, genes[1]].X).ravel()
    got = [values[tuple(np.round(place, 1))] for place in np.asarray(table.obsm["spatial"])]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_pixels_have_their_size_in_microns(slide, trained):
    for um_per_px in (None, 25.0):
        image = drawn(slide, trained.genes[0], um_per_px=um_per_px)
        matrix = get_transformation(image, "P1_S1_um").to_affine_matrix(("x", "y"), ("x", "y"))
        assert matrix[0, 0] == pytest.approx(um_per_px or 100.0)
    finer = drawn(slide, trained.genes[0], um_per_px=25.0)
    whole = drawn(slide, trained.genes[0])
    np.testing.assert_allclose(finer.values[0][2::4, 2::4], whole.values[0])


def test_picture_is_stored_and_replaced_and_other_images_are_not(slide, trained, tmp_path):
    call = {"key": "predicted", "table_key": "slide_tiles"}
    ig.tl.rasterize_prediction(slide, trained.genes[0], **call)
    ig.tl.rasterize_prediction(slide, trained.genes[1], **call)
    slide.write(tmp_path / "slide.zarr")
    back = read_zarr(tmp_path / "slide.zarr")
    np.testing.assert_array_equal(back["P1_S1_predicted"].values, slide["P1_S1_predicted"].values)
    ig.tl.rasterize_prediction(back, trained.genes[0], **call)
    with pytest.raises(Img2GeneError, match="`P1_S1_image` is the name of an element"):
        ig.tl.rasterize_prediction(slide, trained.genes[0], key_added="P1_S1_image", **call)
    # An image of numbers of the user, as a prediction from elsewhere would be.
    slide.images["mine"] = Image2DModel.parse(np.zeros((1, 4, 4), dtype=np.float32), dims=("c", "y", "x"))
    with pytest.raises(Img2GeneError, match="choose another `key_added`"):
        ig.tl.rasterize_prediction(slide, trained.genes[0], key_added="mine", **call)


def test_spots_of_several_sections_need_a_choice(trained):
    sdata = ig.datasets.synthetic_cohort(n_patients=2, n_sections=1, n_spots=30, n_genes=40)
    ig.pp.extract_patches(sdata, patch_um=112)
    ig.pp.embed_patches(sdata, "color-texture")
    ig.tl.predict(sdata, trained)
    with pytest.raises(Img2GeneError, match=r"several sections \(P1_S1, P2_S1\).*section="):
        ig.tl.rasterize_prediction(sdata, trained.genes[0])
    image = ig.tl.rasterize_prediction(sdata, trained.genes[0], section="P2_S1", outside=None, inplace=False)
    rows = (sdata["table"].obs["section"] == "P2_S1").to_numpy()
    values = np.asarray(sdata["table"][rows, trained.genes[0]].layers["img2gene"]).ravel()
    assert set(np.round(image.values[np.isfinite(image.values)], 5)) <= set(np.round(values, 5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"genes": "NONE"}, "NONE"),
        ({"section": "S9"}, "No section named S9"),
        ({"um_per_px": 0}, "um_per_px=0"),
        ({"um_per_px": 1e-3}, "choose larger pixels"),
    ],
)
def test_what_cannot_be_drawn_is_refused_and_nothing_written(slide, trained, changes, message):
    before = set(slide.images)
    with pytest.raises(Img2GeneError, match=message):
        drawn(slide, **{"genes": trained.genes[0], **changes})
    assert set(slide.images) == before


def test_slide_is_drawn_in_microns_with_a_scale_bar(slide, trained):
    figure = ig.pl.slide(slide, trained.genes[0], key="predicted", table_key="slide_tiles")
    axes, bar_axes = figure.axes
    picture, prediction = axes.images
    height, width = slide["P1_S1_image"].shape[1:]
    np.testing.assert_allclose(picture.get_extent(), (0, width * 0.65, height * 0.65, 0))
    left, right, bottom, top = prediction.get_extent()
    centers = np.asarray(slide["slide_tiles"].obsm["spatial"]) * 0.65
    np.testing.assert_allclose([left, top], centers.min(axis=0) - 50, atol=0.5)
    np.testing.assert_allclose([right, bottom], centers.max(axis=0) + 50, atol=0.5)
    (bar,) = [artist for artist in axes.artists if isinstance(artist, ScaleBar)]
    # The axes are in µm.
    assert (bar.dx, bar.units) == (1.0, "um")
    assert bar_axes.get_ylabel() == "predicted, log1p(CP10K)"
    plt.close("all")


@pytest.mark.filterwarnings("ignore:The set_bad function:PendingDeprecationWarning")
def test_spatialdata_plot_shows_it(slide, trained):
    pytest.importorskip("spatialdata_plot")
    ig.tl.rasterize_prediction(slide, trained.genes[0], key="predicted", table_key="slide_tiles")
    axes = slide.pl.render_images("P1_S1_predicted").pl.show(coordinate_systems="P1_S1", return_ax=True)
    assert axes.images
    plt.close("all")
