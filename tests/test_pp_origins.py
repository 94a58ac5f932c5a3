"""Patches and embeddings are used only with the image, the places and the settings that they were made from."""

import dask.array as da
import numpy as np
import pytest
import spatialdata as sd
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel
from spatialdata.transformations import Scale, Translation, get_transformation, set_transformation

import img2gene as ig
from img2gene import _schema
from img2gene._errors import Img2GeneError
from img2gene._study import origins
from img2gene._study.images import open_image
from img2gene._study.origins import check_embedding, content_digest
from img2gene._study.study import Study

AGAIN = "Run `img2gene.pp.extract_patches` again"


@pytest.fixture
def section(make_section):
    sdata = make_section("S1", "P1")
    ig.pp.extract_patches(sdata, patch_um=60, patch_px=32)
    return sdata


def replace_image(sdata, pixels, **options):
    transformations = get_transformation(sdata["S1_image"], get_all=True)
    image = Image2DModel.parse(pixels, dims=("c", "y", "x"), transformations=dict(transformations), **options)
    del sdata.images["S1_image"]
    sdata.images["S1_image"] = image


def crop(sdata):
    box = {"min_coordinate": [33, 27], "max_coordinate": [133, 127]}
    return sdata.query.bounding_box(axes=("x", "y"), target_coordinate_system="S1", **box)


def half_resolution(sdata):
    replace_image(sdata, sdata["S1_image"].values[:, ::2, ::2])
    set_transformation(sdata["S1_image"], Scale([2, 2], axes=("x", "y")), "S1")


def brighter(sdata):
    pixels = sdata["S1_image"].values.copy()
    pixels[0, 80, 80] += 1
    replace_image(sdata, pixels)


def other_image(sdata):
    replace_image(sdata, np.flip(sdata["S1_image"].values, axis=1).copy())


def moved(sdata):
    set_transformation(sdata["S1_spots"], Translation([3, 0], axes=("x", "y")), "S1")


def scaled(sdata):
    set_transformation(sdata["S1_image"], Scale([1.02, 1.02], axes=("x", "y")), "S1")


def corrected_spots(sdata):
    spots = sdata["S1_spots"].copy()
    spots.geometry = spots.translate(0, 4)
    del sdata.shapes["S1_spots"]
    sdata.shapes["S1_spots"] = spots


def other_instances(sdata):
    key = sdata["table"].uns["spatialdata_attrs"]["instance_key"]
    sdata["table"].obs[key] = np.roll(sdata["table"].obs[key].to_numpy(), 1)


def other_windows(sdata):
    sdata["table"].obsm["patch_bbox"] = sdata["table"].obsm["patch_bbox"] + 3


CHANGES = {
    "spots": (corrected_spots, "spots and windows are up to 4"),
    "instances": (other_instances, "spots and windows are up to"),
    "windows": (other_windows, "spots and windows are up to 3"),
    "crop": (crop, r"it has 10\d × 10\d px, and had 160 × 160"),
    "resolution": (half_resolution, "it has 80 × 80 px, and had 160 × 160"),
    "one pixel": (brighter, "its pixels have changed"),
    "another image": (other_image, "its pixels have changed"),
    "translation": (moved, "the transformation between them has changed, by up to 3 px"),
    "scale": (scaled, "the transformation between them has changed, by up to 4"),
}
READERS = {
    "embed_patches": lambda sdata: ig.pp.embed_patches(sdata, "tiny"),
    "get.patches": lambda sdata: ig.get.patches(sdata, [0]),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("change", CHANGES)
def test_patches_of_a_changed_image_are_not_read_until_they_are_extracted_again(section, snapshot, change, reader):
    spoil, message = CHANGES[change]
    sdata = spoil(section) or section
    before = snapshot(sdata["table"])
    with pytest.raises(Img2GeneError, match=f"`S1_spots` no longer belong to image `S1_image`: {message}.*{AGAIN}"):
        READERS[reader](sdata)
    assert snapshot(sdata["table"]) == before
    ig.pp.extract_patches(sdata, patch_um=60, patch_px=32, mpp=5)
    READERS[reader](sdata)


def test_patches_after_a_crop_show_their_spots(section):
    sdata = crop(section)
    whole = ig.get.patches(section, list(sdata["table"].obs_names))
    ig.pp.extract_patches(sdata, patch_um=60, patch_px=32)
    inside = (sdata["table"].obs["patch_inside"] == 1).to_numpy()
    assert inside.sum() > 5
    np.testing.assert_array_equal(ig.get.patches(sdata, np.flatnonzero(inside)), whole[inside])


def test_the_same_image_is_recognised_whatever_its_storage(section, tmp_path):
    section.write(tmp_path / "study.zarr")
    lazy = sd.read_zarr(tmp_path / "study.zarr")
    expected = ig.get.patches(section, [0, 30])
    np.testing.assert_array_equal(ig.get.patches(lazy, [0, 30]), expected)
    pixels = section["S1_image"].values
    for chunks, options in (((3, 160, 160), {}), ((1, 7, 50), {}), ((3, 64, 64), {"scale_factors": [2, 2]})):
        replace_image(section, da.from_array(pixels, chunks=chunks), **options)
        np.testing.assert_array_equal(ig.get.patches(section, [0, 30]), expected)


def test_another_system_with_the_same_alignment_changes_nothing(section):
    for element in ("S1_spots", "S1_image"):
        set_transformation(section[element], Scale([5, 5], axes=("x", "y")), "micrometres")
    ig.get.patches(section, [0])


@pytest.mark.filterwarnings("ignore:The table is annotating:UserWarning")
def test_pixels_can_be_read_without_the_regions(section):
    plain = SpatialData(images=dict(section.images), tables={"table": section["table"]})
    np.testing.assert_array_equal(ig.get.patches(plain, [3]), ig.get.patches(section, [3]))


def test_a_large_image_is_recognised_by_a_sample_of_its_chunks(monkeypatch):
    monkeypatch.setattr(origins, "_WHOLE_PX", 1000)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 700, 900), dtype=np.uint8)

    def digest(values, chunks):
        array = da.from_array(values, chunks=chunks)
        return content_digest(
            open_image(SpatialData(images={"he": Image2DModel.parse(array, dims=("c", "y", "x"))}), "he")
        )

    expected = digest(pixels, (3, 700, 900))
    assert digest(pixels, (3, 100, 64)) == expected
    assert digest(pixels, (1, 33, 900)) == expected
    assert digest(255 - pixels, (3, 700, 900)) != expected
    assert digest(pixels[::-1], (3, 700, 900)) != expected


def test_a_digest_reads_few_chunks_of_a_lazy_slide():
    reads = []

    def tile(block_info=None):
        reads.append(block_info[None]["chunk-location"])
        return np.full(block_info[None]["chunk-shape"], len(reads) % 7, np.uint8)

    # 2.5 gigapixels, which are never in memory.
    array = da.map_blocks(
        tile, chunks=((3,), (500,) * 100, (500,) * 100), dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8)
    )
    image = Image2DModel.parse(array, dims=("c", "y", "x"))
    content_digest(open_image(SpatialData(images={"he": image}), "he"))
    assert 0 < len(set(reads)) <= 4 * 64


def stale(sdata, encoder="tiny"):
    try:
        check_embedding(Study.of(sdata), encoder)
    except Img2GeneError as error:
        assert f"`obsm['X_{encoder}']` was made from other patches" in str(error).replace("sdata['table'].", "")
        assert f"img2gene.pp.embed_patches(sdata, '{encoder}')` again" in str(error)
        return True
    return False


@pytest.fixture
def embedded(section):
    ig.pp.embed_patches(section, "tiny")
    return section


def extract(sdata, **options):
    ig.pp.extract_patches(sdata, **({"patch_um": 60, "patch_px": 32} | options))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, False),
        ({"patch_um": 80}, True),
        ({"patch_um": (60, 80)}, True),
        ({"mpp": 4}, True),
        ({"mpp": 4, "patch_um": 48}, True),
    ],
)
def test_an_embedding_of_other_patches_is_stale(embedded, options, expected):
    extract(embedded, **options)
    assert stale(embedded) is expected
    # Going back to the settings of the embedding makes it fit again.
    extract(embedded)
    assert not stale(embedded)
    extract(embedded, **options)
    ig.pp.embed_patches(embedded, "tiny")
    assert not stale(embedded)


def test_an_embedding_of_an_image_that_was_replaced_is_stale(embedded):
    brighter(embedded)
    with pytest.raises(Img2GeneError, match="its pixels have changed"):
        check_embedding(Study.of(embedded), "tiny")
    extract(embedded)
    assert stale(embedded)


def test_an_embedding_of_spots_that_were_moved_is_stale(embedded):
    circles = embedded["S1_spots"].copy()
    circles["geometry"] = circles.geometry.translate(5, 0)
    del embedded.shapes["S1_spots"]
    embedded.shapes["S1_spots"] = ShapesModel.parse(circles)
    extract(embedded)
    assert stale(embedded)


def test_embeddings_follow_filtered_and_reordered_rows(embedded):
    order = np.random.default_rng(0).permutation(49)[:30]
    embedded.tables["table"] = embedded["table"][order].copy()
    assert not stale(embedded)
    extract(embedded)
    assert not stale(embedded)
    ig.get.patches(embedded, [0])


def test_a_table_filtered_in_place_forgets_the_regions_that_are_gone(study):
    table = study["table"]
    expected = ig.get.patches(study, [0])
    table._inplace_subset_obs((table.obs["section"] != "B1").to_numpy())
    assert "B1_spots" in table.uns["spatialdata_attrs"]["region"]
    del study.images["B1_image"], study.shapes["B1_spots"]
    np.testing.assert_array_equal(ig.get.patches(study, [0]), expected)
    ig.pp.embed_patches(study, "tiny")
    assert not stale(study)
    extract(study)
    assert not stale(study)
    assert set(_schema.read_json(table, "patches")["regions"]) == {"A1_spots", "A2_spots", "C1_spots"}


def test_pathways_are_not_selected_with_an_embedding_of_other_patches(study):
    extract(study, patch_um=80)
    sets = {"one": ["G00", "G03", "G06"], "other": ["G01", "G04", "G07"]}
    with pytest.raises(Img2GeneError, match="was made from other patches of A1_spots, A2_spots, B1_spots, C1_spots"):
        ig.pp.score_pathways(study, sets, n_top=1, min_genes=2)


def test_joined_sections_keep_what_their_embeddings_were_made_from(make_section):
    parts = [make_section(name, "P") for name in ("S1", "S2")]
    for part in parts:
        extract(part)
        ig.pp.embed_patches(part, "tiny")
    joined = ig.io.concat_sections(parts)
    assert not stale(joined)
    extract(joined, mpp={"S1_spots": 5, "S2_spots": 4})
    with pytest.raises(Img2GeneError, match="other patches of S2_spots:"):
        check_embedding(Study.of(joined), "tiny")


def test_the_thumbnail_of_a_crop_lies_under_its_spots(section):
    del section["table"].uns["spatial"]
    pixels = np.full((3, 160, 160), 240, np.uint8)
    xy = section["table"].obsm["spatial"].astype(int)
    for number, (x, y) in enumerate(xy):
        pixels[:, y - 5 : y + 5, x - 5 : x + 5] = 4 * number
    replace_image(section, pixels)
    sdata = crop(section)
    extract(sdata)
    table = sdata["table"]
    library = table.uns["spatial"]["S1"]
    places = (table.obsm["spatial"] * library["scalefactors"]["tissue_hires_scalef"]).astype(int)
    shown = library["images"]["hires"][places[:, 1], places[:, 0], 0]
    inside = (table.obs["patch_inside"] == 1).to_numpy()
    assert inside.sum() > 5
    np.testing.assert_array_equal(shown[inside], 4 * table.obs["spot_id"].to_numpy()[inside])


def test_a_microarray_gets_a_thumbnail_for_each_core(section):
    table = section["table"]
    del table.uns["spatial"]
    table.obs["section"] = np.where(np.arange(49) < 20, "core1", "core2")
    extract(section)
    assert sorted(table.uns["spatial"]) == ["core1", "core2"]


def without(*names):
    return lambda record, entry: [entry.pop(name) for name in names]


def with_entry(name, value):
    return lambda record, entry: entry.update({name: value})


DAMAGED = {
    "a window without a side": with_entry("side_px", [0]),
    "a window larger than memory": with_entry("side_px", [10**9]),
    "a map to a line": with_entry("matrix", [[1, 0, 0], [2, 0, 0]]),
    "half a map": with_entry("matrix", [[1, 0, 0]]),
    "an image of one length": with_entry("size", [5]),
    "no map": without("matrix"),
    "no size": without("size"),
    "a huge input": lambda record, entry: record.update(patch_px=10**9),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_damaged_records_of_patches_are_refused(section, damage):
    record = _schema.read_json(section["table"], "patches")
    damage(record, record["regions"]["S1_spots"])
    _schema.write_json(section["table"], "patches", record)
    calls = (
        lambda: ig.pp.embed_patches(section, "tiny"),
        lambda: ig.get.patches(section, slice(0, 3)),
        lambda: ig.pp.tile_slide(section, "S1_image"),
        lambda: ig.pp.extract_patches(section, patch_um=60),
    )
    for call in calls:
        with pytest.raises(Img2GeneError, match=r"uns\['img2gene'\]\['patches'\] is damaged: .*Remove this entry"):
            call()


def test_a_reader_that_does_not_know_microns_is_no_source(make_section):
    sdata = make_section("S1", "P1")
    record = _schema.read_json(sdata["table"], "sections")
    record["S1"]["mpp"] = None
    _schema.write_json(sdata["table"], "sections", record)
    with pytest.raises(Img2GeneError, match="Microns per pixel of `S1_image` .* are not known"):
        ig.pp.extract_patches(sdata, patch_um=60)
    with pytest.raises(Img2GeneError, match="Microns per pixel of `S1_image` are not known"):
        ig.pp.tile_slide(sdata, "S1_image")
