"""Stain: images brought to one stain by squidpy, and features averaged over restained copies."""

from __future__ import annotations

import types

import dask.array as da
import numpy as np
import pytest
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity, Scale, get_transformation

import img2gene as ig

RGB = ["r", "g", "b"]


def tissue(dyes: np.ndarray, seed: int = 0, side: int = 120) -> np.ndarray:
    """White glass around tissue of two dyes, uint8 (3, side, side), by the law of Beer and Lambert."""
    rng = np.random.default_rng(seed)
    amounts = np.zeros((side, side, 2))
    inner = slice(20, side - 20)
    shape = (side - 40, side - 40)
    nuclei = rng.random(shape) < 0.4
    amounts[inner, inner, 0] = np.where(nuclei, rng.uniform(0.8, 1.6, shape), rng.uniform(0, 0.1, shape))
    amounts[inner, inner, 1] = np.where(nuclei, rng.uniform(0, 0.1, shape), rng.uniform(0.4, 1.0, shape))
    return np.moveaxis(np.rint(255 * np.exp(-(amounts @ dyes))).astype(np.uint8), -1, 0)


# Optical densities of red, green and blue of haematoxylin and eosin, of two laboratories.
ONE = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
OTHER = np.array([[0.75, 0.60, 0.28], [0.20, 0.93, 0.30]])


def images(**pixels: np.ndarray) -> SpatialData:
    return SpatialData(
        images={
            name: Image2DModel.parse(values, dims=("c", "y", "x"), c_coords=RGB, transformations={name: Identity()})
            for name, values in pixels.items()
        }
    )


def mean_distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - other.astype(float))[:, 20:-20, 20:-20].mean())


def places(image) -> dict[str, list]:
    """The map from pixels to each coordinate system."""
    systems = get_transformation(image, get_all=True)
    return {name: system.to_affine_matrix(("y", "x"), ("y", "x")).tolist() for name, system in systems.items()}


@pytest.mark.parametrize("method", ["macenko", "vahadane", "reinhard"])
def test_the_same_tissue_in_the_dyes_of_another_laboratory_becomes_that_of_the_reference(method):
    reference, other = tissue(ONE), tissue(OTHER)
    sdata = images(a=reference, b=other)
    ig.pp.normalize_stain(sdata, "a", method=method)
    normalised = sdata.images["b_normalized"].to_numpy()
    assert mean_distance(normalised, reference) < 0.5 * mean_distance(other, reference)
    # The reference itself hardly changes, the glass not at all, and the originals never.
    assert mean_distance(sdata.images["a_normalized"].to_numpy(), reference) < 3
    assert (normalised[:, :15] == other[:, :15]).all()
    assert (sdata.images["b"].to_numpy() == other).all()


def test_a_stored_reference_does_what_the_image_does():
    sdata, new = images(a=tissue(ONE), b=tissue(OTHER)), images(b=tissue(OTHER))
    reference = ig.pp.fit_stain(sdata, "a")
    ig.pp.normalize_stain(sdata, "a", images="b")
    found = ig.pp.normalize_stain(new, reference, inplace=False)
    assert list(new.images) == ["b"]
    assert (found["b_normalized"].to_numpy() == sdata.images["b_normalized"].to_numpy()).all()
    assert "a_normalized" not in sdata.images


def test_chunks_and_channels_do_not_matter():
    pixels = tissue(OTHER)
    whole, reference = images(b=pixels), ig.pp.fit_stain(images(a=tissue(ONE)), "a")
    chunked = SpatialData(
        images={
            "b": Image2DModel.parse(
                da.from_array(pixels[::-1], chunks=(1, 37, 50)), dims=("c", "y", "x"), c_coords=["b", "g", "r"]
            )
        }
    )
    one, two = (ig.pp.normalize_stain(s, reference, inplace=False)["b_normalized"].to_numpy() for s in (whole, chunked))
    assert (one == two).all()


def test_scales_and_transformations_are_those_of_the_original(tmp_path):
    image = Image2DModel.parse(
        tissue(OTHER),
        dims=("c", "y", "x"),
        c_coords=RGB,
        scale_factors=[2],
        transformations={"s": Identity(), "s_um": Scale([0.5, 0.5], ("y", "x"))},
    )
    sdata = SpatialData(images={"b": image, "a": images(a=tissue(ONE)).images["a"]})
    ig.pp.normalize_stain(sdata, "a", images="b", key_added="he")
    assert [node["image"].shape for node in sdata.images["b_he"].children.values()] == [(3, 120, 120), (3, 60, 60)]
    assert places(sdata.images["b_he"]) == places(sdata.images["b"])
    fine, coarse = (node["image"].to_numpy().astype(float) for node in sdata.images["b_he"].children.values())
    assert np.abs(fine.mean(axis=(1, 2)) - coarse.mean(axis=(1, 2))).max() < 8
    sdata.write(tmp_path / "s.zarr")
    again = SpatialData.read(tmp_path / "s.zarr").images["b_he"]
    assert (again["scale0"]["image"].to_numpy() == fine).all()
    assert places(again) == places(image)


def test_what_cannot_be_normalised_is_named_and_nothing_is_written():
    sdata = images(a=tissue(ONE), white=np.full((3, 60, 60), 255, dtype=np.uint8), b=tissue(OTHER))
    with pytest.raises(ig.Img2GeneError, match="`white` shows no tissue"):
        ig.pp.normalize_stain(sdata, "a")
    assert set(sdata.images) == {"a", "white", "b"}
    with pytest.raises(ig.MissingKeyError, match=r"`c` not found in `sdata.images` \(available: a, white, b\)"):
        ig.pp.normalize_stain(sdata, "c")
    ig.pp.normalize_stain(sdata, "a", images="b")
    with pytest.raises(ig.Img2GeneError, match="b_normalized exist already"):
        ig.pp.normalize_stain(sdata, "a", images=["a", "b"])
    with pytest.raises(ig.Img2GeneError, match="reference=3"):
        ig.pp.normalize_stain(sdata, 3)
    with pytest.raises(ig.Img2GeneError, match="'reinhard' makes no assumption"):
        green = np.full((3, 80, 80), 255, dtype=np.uint8)
        green[:, 20:60, 20:60] = [[[40]], [[200]], [[40]]]
        ig.pp.fit_stain(images(green=green), "green")


def test_normalised_images_are_not_normalised_again():
    sdata = images(a=tissue(ONE), b=tissue(OTHER))
    ig.pp.normalize_stain(sdata, "a")
    ig.pp.normalize_stain(sdata, "a", method="reinhard", key_added="reinhard")
    assert set(sdata.images) == {"a", "b", "a_normalized", "b_normalized", "a_reinhard", "b_reinhard"}


def left(sdata) -> list[str]:
    """The images that a call without names normalises."""
    found = ig.pp.normalize_stain(sdata, "a", method="reinhard", key_added="next", inplace=False)
    return sorted(name.removesuffix("_next") for name in found)


@pytest.mark.parametrize("write", [ig.io.write_study, lambda sdata, path: sdata.write(path)])
def test_a_study_that_was_written_knows_which_images_were_normalised(tmp_path, write):
    sdata = images(a=tissue(ONE), b=tissue(OTHER))
    sdata.attrs["mine"] = {"kept": 1}
    ig.pp.normalize_stain(sdata, "a", method="reinhard")
    write(sdata, tmp_path / "s.zarr")
    read = SpatialData.read(tmp_path / "s.zarr")
    assert left(sdata) == left(read) == ["a", "b"]
    assert read.attrs["mine"] == {"kept": 1} and set(read.attrs["img2gene_stain"]) == {"a_normalized", "b_normalized"}
    # One of another size, one of other pixels, and one that no longer exists.
    read.images["a_normalized"] = images(x=tissue(ONE, side=100)).images["x"]
    read.images["b_normalized"] = images(x=tissue(ONE, seed=5)).images["x"]
    assert left(read) == ["a", "a_normalized", "b", "b_normalized"]
    del read.images["b_normalized"]
    ig.pp.normalize_stain(read, "a", method="reinhard", images="b", key_added="again")
    assert set(read.attrs["img2gene_stain"]) == {"b_again"}


def test_images_that_were_added_by_hand_and_joined_studies_keep_their_marks(tmp_path):
    sdata, other = images(a=tissue(ONE)), images(b=tissue(OTHER))
    for name, image in ig.pp.normalize_stain(sdata, "a", method="reinhard", inplace=False).items():
        sdata.images[name] = image
    ig.pp.normalize_stain(other, "b", method="reinhard")
    parts = []
    for number, part in enumerate((sdata, other)):
        ig.io.write_study(part, tmp_path / f"{number}.zarr")
        # Once more, to the store that its images may read from.
        parts.append(SpatialData.read(tmp_path / f"{number}.zarr"))
        ig.io.write_study(parts[-1], tmp_path / f"{number}.zarr")
    assert left(ig.io.concat_sections(parts)) == ["a", "b"]


def test_a_failed_call_changes_no_attributes(monkeypatch):
    from img2gene.pp import stain

    def broken(sdata):
        raise KeyboardInterrupt

    sdata = images(a=tissue(ONE))
    monkeypatch.setattr(stain, "with_stain_marks", broken)
    with pytest.raises(KeyboardInterrupt):
        ig.pp.normalize_stain(sdata, "a", method="reinhard")
    assert list(sdata.images) == ["a"] and sdata.attrs == {}


def test_a_reference_has_its_own_method():
    sdata = images(a=tissue(ONE), b=tissue(OTHER))
    reference = ig.pp.fit_stain(sdata, "a", method="reinhard")
    with pytest.raises(
        ig.Img2GeneError, match=r"method='macenko': the reference was fitted by 'reinhard'. Leave `method`"
    ):
        ig.pp.normalize_stain(sdata, reference, method="macenko")
    for wrong in (types.SimpleNamespace(method="reinhard"), None):
        with pytest.raises(
            ig.Img2GeneError, match="expected the name of an image, or what `img2gene.pp.fit_stain` returned"
        ):
            ig.pp.normalize_stain(sdata, wrong)
    for wrong in (True, 3, [["a"]]):
        with pytest.raises(ig.Img2GeneError, match="images=.*expected a name or a list of names"):
            ig.pp.normalize_stain(sdata, reference, images=wrong)
    assert list(sdata.images) == ["a", "b"]
    chosen = {"images": "b", "inplace": False}
    plain, named, image = (
        ig.pp.normalize_stain(sdata, *arguments, **options, **chosen)["b_normalized"].to_numpy()
        for arguments, options in (
            ((reference,), {}),
            ((reference,), {"method": "reinhard"}),
            (("a",), {"method": "reinhard"}),
        )
    )
    assert (plain == named).all() and (plain == image).all()
    default = ig.pp.normalize_stain(sdata, "a", **chosen)["b_normalized"].to_numpy()
    macenko = ig.pp.normalize_stain(sdata, "a", method="macenko", **chosen)["b_normalized"].to_numpy()
    assert (default == macenko).all() and (default != image).any()


@pytest.fixture(scope="module")
def cohort():
    sdata = ig.datasets.synthetic_cohort(n_patients=3, n_sections=1, n_spots=30, n_genes=60, mpp=1.0)
    ig.pp.extract_patches(sdata, patch_um=56, patch_px=56)
    return sdata


def features(sdata: SpatialData, **options) -> np.ndarray:
    update = ig.pp.embed_patches(sdata, "color-texture", orientations=1, inplace=False, **options)
    return update["obsm"]["X_color-texture"]


def test_augmented_features_are_the_mean_over_five_stains(cohort):
    from img2gene.encoders.restain import FACTOR, restained

    pixels, encoder = ig.get.patches(cohort, np.arange(5)), ig.encoders.load("color-texture")
    copies = [copy for factor in (FACTOR, 1 / FACTOR) for copy in restained(pixels, np.full(5, factor))]
    side = ig.encoders.get("color-texture").input_px
    expected = np.mean([encoder(np.ascontiguousarray(view), side) for view in (pixels, *copies)], axis=0)
    found = features(cohort, augment="stain")
    plain = features(cohort)
    assert np.allclose(found[:5], expected, atol=1e-4)
    assert not np.allclose(found, plain)
    assert np.array_equal(found, features(cohort, augment="stain", batch_size=7))


def test_a_model_of_augmented_features_asks_for_the_same(cohort):
    ig.pp.embed_patches(cohort, "color-texture", augment="stain")
    ig.tl.fit(cohort, "ridge", validate_on=["P3"])
    ig.tl.predict(cohort)
    ig.pp.embed_patches(cohort, "color-texture")
    with pytest.raises(
        ig.Img2GeneError, match=r"trained with augmentation stain, the object has None.*augment='stain'"
    ):
        ig.tl.predict(cohort)
    with pytest.raises(ig.Img2GeneError, match="augment='colour': expected one of stain"):
        ig.pp.embed_patches(cohort, "color-texture", augment="colour")


def test_a_model_of_normalised_images_asks_for_the_same():
    sdata = ig.datasets.synthetic_cohort(n_patients=3, n_sections=1, n_spots=30, n_genes=60)
    ig.pp.normalize_stain(sdata, "P1_S1_image", method="reinhard")
    normalised = {f"{name}_spots": f"{name}_image_normalized" for name in ("P1_S1", "P2_S1", "P3_S1")}
    models = {}
    for images in (normalised, None):
        ig.pp.extract_patches(sdata, patch_um=112, images=images)
        ig.pp.embed_patches(sdata, "color-texture")
        models[images is None] = ig.tl.fit(sdata, "ridge", validate_on=["P3"], inplace=False)
    assert models[False].inputs["normalized"] == "reinhard" and "normalized" not in models[True].inputs
    ig.tl.predict(sdata, models[True], inplace=False)
    message = "trained with stain normalisation reinhard, .* has None"
    with pytest.raises(ig.Img2GeneError, match=f"{message}.*normalised ones, of `img2gene.pp.normalize_stain`"):
        ig.tl.predict(sdata, models[False])
    with pytest.raises(ig.Img2GeneError, match=message):
        ig.tl.predict(sdata, models[False], features="X_color-texture")
