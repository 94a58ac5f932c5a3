"""Reading, joining and preparing check a table as training does, and leave it as it was."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import shapely

import img2gene as ig
from img2gene import _schema
from img2gene._errors import Img2GeneError
from img2gene.pp import tiles

SETS = {"one": ["G00", "G03", "G06"], "two": ["G01", "G04", "G07"]}
CALLS = {
    "concat_sections": lambda sdata, other: ig.io.concat_sections([sdata, other]),
    "concat_sections alone": lambda sdata, other: ig.io.concat_sections([sdata]),
    "concat_sections union": lambda sdata, other: ig.io.concat_sections([other, sdata], genes="union"),
    "to_anndata": lambda sdata, other: ig.io.to_anndata(sdata),
    "extract_patches": lambda sdata, other: ig.pp.extract_patches(sdata, patch_um=60),
    "embed_patches": lambda sdata, other: ig.pp.embed_patches(sdata, "tiny"),
    "select_genes": lambda sdata, other: ig.pp.select_genes(sdata, 5),
    "score_pathways": lambda sdata, other: ig.pp.score_pathways(sdata, SETS, n_top=1, min_genes=2),
    "from_anndata": lambda sdata, other: ig.io.from_anndata(sdata["table"], spot_um=24, library_key="section"),
}
STUDIES = [name for name in CALLS if name != "from_anndata"]
COUNTED = [name for name in CALLS if name not in ("extract_patches", "embed_patches")]
LOCATED = ["to_anndata", "extract_patches", "embed_patches", "concat_sections", "concat_sections alone"]


@pytest.fixture
def other(make_section):
    return make_section("Z1", "Z", seed=9)


def refused(sdata, other, snapshot, calls, message):
    before = snapshot(sdata["table"])
    for name in calls:
        with pytest.raises(Img2GeneError, match=message) as caught:
            CALLS[name](sdata, other)
        lines = str(caught.value).splitlines()
        assert len(lines) == len(set(lines)), name
        assert snapshot(sdata["table"]) == before, name


def name_alike(axis):
    def spoil(table):
        names = getattr(table, f"{axis}_names")
        setattr(table, f"{axis}_names", [names[1], *names[1:]])

    return spoil


def twice(column, axis="obs"):
    def spoil(table):
        frame = getattr(table, axis)
        setattr(table, axis, pd.concat([frame, frame[[column]]], axis=1))

    return spoil


def set_column(column, values):
    def spoil(table):
        table.obs[column] = values(table)

    return spoil


def lists(table):
    return pd.Series([["a"]] * table.n_obs, index=table.obs_names, dtype=object)


def missing(column):
    return lambda table: [None, *table.obs[column].astype(object)[1:]]


NAMES = {
    "spots": (name_alike("obs"), "1 duplicate spots .A1_1.*obs_names_make_unique"),
    "genes": (name_alike("var"), "1 duplicate genes .G01.*var_names_make_unique"),
    "section twice": (twice("section"), "several columns section; keep one"),
    "library size twice": (twice("library_size"), "several columns library_size; keep one"),
    "region twice": (twice("region"), "several columns region; keep one"),
    "section": (set_column("section", missing("section")), r"obs\['section'\]` is missing in 1 rows"),
    "tissue": (set_column("in_tissue", lambda table: 0.5), r"obs\['in_tissue'\]` holds 0.5"),
}


@pytest.mark.filterwarnings("ignore:.*names are not unique")
@pytest.mark.parametrize(("spoil", "message"), NAMES.values(), ids=NAMES)
def test_names_and_columns_are_checked_at_every_entrance(study, other, snapshot_of_values, spoil, message):
    spoil(study["table"])
    # `from_anndata` makes the names of genes unique.
    refused(study, other, snapshot_of_values, STUDIES if "genes" in message else CALLS, message)


@pytest.fixture
def snapshot_of_values():
    """Comparable content of a table, also if columns occur twice."""
    return lambda table: repr(
        (table.obs.to_numpy().tolist(), table.obsm, table.uns, list(table.var_names), str(table.X))
    )


REGIONS = {
    "spot of two rows": (set_column("spot_id", lambda t: [1, *t.obs["spot_id"][1:]]), "names 1 spots twice .first: 1 of `A1_spots`"),
    "missing spot": (set_column("spot_id", missing("spot_id")), r"obs\['spot_id'\]` is missing in 1 rows"),
    "lists of spots": (set_column("spot_id", lists), r"obs\['spot_id'\]` holds list in 196 rows"),
    "missing region": (set_column("region", missing("region")), "1 rows of .* name no region"),
    "lists of regions": (set_column("region", lists), r"obs\['region'\]` holds list in 196 rows"),
    "no column of spots": (lambda t: t.obs.__delitem__("spot_id"), "spot_id|columns of regions and instances"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), REGIONS.values(), ids=REGIONS)
def test_each_row_names_a_spot_of_its_own(study, other, snapshot, spoil, message):
    spoil(study["table"])
    refused(study, other, snapshot, STUDIES, message)


POSITIONS = {
    "text": lambda table: np.full((table.n_obs, 2), "a"),
    "complex": lambda table: table.obsm["spatial"] * 1j,
    "sparse": lambda table: sp.csr_matrix(table.obsm["spatial"]),
    "masked": lambda table: np.ma.array(table.obsm["spatial"], mask=table.obsm["spatial"] < 30),
    "one column": lambda table: table.obsm["spatial"][:, :1],
}


@pytest.mark.parametrize("values", POSITIONS.values(), ids=POSITIONS)
def test_positions_are_numbers_at_every_entrance(study, other, snapshot_of_values, values):
    study["table"].obsm["spatial"] = values(study["table"])
    refused(study, other, snapshot_of_values, CALLS, r"obsm\['spatial'\]` h(olds values that are not numbers|as shape)")


def test_positions_that_are_missing_are_refused_where_they_are_used(study, other, snapshot):
    table = study["table"]
    table.obsm["spatial"] = np.where(np.arange(196)[:, None] == 3, np.nan, table.obsm["spatial"])
    ig.pp.select_genes(study, 5)
    message = r"`sdata\['table'\].obsm\['spatial'\]` holds NaN or infinite positions in 1 rows .*A1_3"
    with pytest.raises(Img2GeneError, match=message):
        ig.pp.select_genes(study, 5, by="spatial")
    refused(study, other, snapshot, ["score_pathways"], message)
    for key in list(study.images):
        del study.images[key]
    refused(study, other, snapshot, ["to_anndata"], message)


COUNTS = {
    "objects": (lambda x: x.astype(object), "holds object values"),
    "truth": (lambda x: x > 0, "holds bool values"),
    "sparse truth": (lambda x: sp.csr_matrix(x > 0), "holds bool values"),
    "complex": (lambda x: x.astype(complex), "holds complex128 values"),
    "text": (lambda x: x.astype(str), "holds <U.* values"),
    "masked": (lambda x: np.ma.array(x, mask=np.arange(x.size).reshape(x.shape) == 0), "masks 1 values"),
}


@pytest.mark.parametrize(("convert", "message"), COUNTS.values(), ids=COUNTS)
def test_counts_that_are_no_numbers_are_refused_where_counts_are_read(
    study, other, snapshot_of_values, convert, message
):
    study["table"].X = convert(study["table"].X.toarray())
    refused(study, other, snapshot_of_values, COUNTED, rf"\.X` {message}")


def without_region(sdata):
    del sdata.shapes["A1_spots"]


@pytest.mark.filterwarnings("ignore:The table is annotating:UserWarning")
def test_a_region_that_is_a_table_has_no_place(study):
    study["table"].obs["region"] = "table"
    study["table"].obs["spot_id"] = np.arange(study["table"].n_obs)
    study["table"].uns["spatialdata_attrs"]["region"] = "table"
    with pytest.raises(
        Img2GeneError, match=r"`table` is a table, which has no place; a region must be one of A1_spots"
    ):
        ig.pp.extract_patches(study, patch_um=56)


def unnamed_row(sdata):
    sdata["table"].obs["region"] = pd.Categorical(["gone", *sdata["table"].obs["region"].astype(str)[1:]])


@pytest.mark.filterwarnings("ignore:The table is annotating:UserWarning")
@pytest.mark.parametrize("spoil", [without_region, unnamed_row])
def test_rows_of_a_region_that_is_absent_are_refused(study, other, snapshot, spoil):
    spoil(study)
    calls = [name for name in LOCATED if name != "embed_patches"]
    refused(study, other, snapshot, calls, "A1_spots|gone|A1 .no image")


def same_names(shapes):
    shapes.index = [1, *shapes.index[1:]]


def no_place(shapes):
    shapes.geometry = [shapely.Point(np.nan, np.nan), *shapes.geometry[1:]]


@pytest.mark.parametrize(
    ("spoil", "message"), [(same_names, "duplicate instance names"), (no_place, "1 (shapes|spots) without a position")]
)
def test_spots_of_a_region_have_one_name_and_a_place(study, other, snapshot, spoil, message):
    shapes = study.shapes["A1_spots"].copy()
    spoil(shapes)
    study.shapes["A1_spots"] = shapes
    refused(study, other, snapshot, LOCATED, message)


@pytest.mark.filterwarnings("ignore:The table is annotating:UserWarning")
def test_what_a_filter_leaves_is_used(study, other):
    table = study["table"]
    table._inplace_subset_obs((table.obs["section"] != "A1").to_numpy())
    del study.shapes["A1_spots"], study.images["A1_image"]
    table.obs["section"] = table.obs["section"].astype(str).astype("category").cat.add_categories(["gone"])
    for name in STUDIES:
        CALLS[name](study, other)
    assert sorted(ig.io.to_anndata(study).uns["spatial"]) == ["A2", "B1", "C1"]
    assert study["table"].obs["patch_tissue"].notna().all()


def test_a_subset_without_images_is_joined_and_asked_for_them(study, other):
    part = study.subset(["A1_spots"])
    joined = ig.io.concat_sections([part, other])
    assert sorted(joined.images) == ["Z1_image"]
    assert joined["table"].n_obs == 98
    for name in ("extract_patches", "embed_patches"):
        with pytest.raises(Img2GeneError, match="image|patches"):
            CALLS[name](part, other)


@pytest.mark.parametrize("values", [np.full((196, 4), "a"), np.zeros((196, 2)), np.zeros((196, 4), dtype=object)])
def test_windows_that_are_no_numbers_are_extracted_again(study, other, snapshot, values):
    study["table"].obsm["patch_bbox"] = values
    again = r"obsm\['patch_bbox'\]` holds .* Run `img2gene.pp.extract_patches` again"
    refused(study, other, snapshot, ["embed_patches", "select_genes", "score_pathways", "concat_sections alone"], again)
    ig.pp.extract_patches(study, patch_um=60, patch_px=32)
    ig.pp.embed_patches(study, "tiny")


def test_a_missing_section_is_said_once(study):
    study["table"].obs["section"] = None
    with pytest.raises(Img2GeneError) as caught:
        ig.pp.select_genes(study, 5, sections=["A1"])
    assert str(caught.value) == "`obs['section']` is missing in 196 rows; name every row's section."


def test_flags_among_thumbnails_stay(study):
    study["table"].uns["spatial"] = {"is_single": True}
    ig.pp.extract_patches(study, patch_um=60)
    assert study["table"].uns["spatial"]["is_single"] is True
    assert "hires" in study["table"].uns["spatial"]["A1"]["images"]
    study["table"].uns["spatial"] = "mine"
    with pytest.raises(Img2GeneError, match=r"uns\['spatial'\]` is a str"):
        ig.pp.extract_patches(study, patch_um=60)


def test_columns_that_no_store_holds_are_named(study, other, snapshot):
    study["table"].obs["thing"] = lists(study["table"])
    refused(study, other, snapshot, ["concat_sections", "from_anndata"], "holds lists or other containers in thing")


def test_numbers_of_spots_that_can_be_missing_are_named_or_kept(study, other, snapshot):
    study["table"].obs["spot_id"] = study["table"].obs["spot_id"].astype("Int64")
    refused(study, other, snapshot, ["concat_sections"], r"holds Int64 values; .*\.astype\(int\)")
    back = CALLS["from_anndata"](study, other)["table"]
    assert back.uns["spatialdata_attrs"]["instance_key"] == "img2gene_spot_id"
    assert back.obs["spot_id"].astype(int).tolist() == study["table"].obs["spot_id"].tolist()


def test_a_section_of_ones_own_is_checked_alike():
    image, xy = np.full((200, 200, 3), 230, dtype=np.uint8), np.array([[60.0, 100.0], [140.0, 100.0]])
    options = {"section": "S1", "patient": None, "mpp": 1, "spot_um": 55}
    for spoil, message in (
        (lambda t: t.__setattr__("X", t.X > 0), "holds bool values"),
        (set_column("thing", lists), "lists or other containers in thing"),
        (lambda t: t.__setattr__("obs", pd.DataFrame([[1, 2]] * 2, columns=["a", "a"], index=["0", "1"])), "columns a"),
    ):
        table = ad.AnnData(np.ones((2, 3), dtype=np.float32), obs=pd.DataFrame(index=["0", "1"]))
        spoil(table)
        with pytest.raises(Img2GeneError, match=message):
            ig.io.build_section(image, xy, table, **options)


def test_one_row_of_visium_spots_is_asked_for(study):
    xy = np.column_stack([100 + 200 * np.arange(6), np.full(6, 150)]).astype(float)
    obs = pd.DataFrame({"array_row": 4, "array_col": 2 * np.arange(6)}, index=[f"b{i}" for i in range(6)])
    adata = ad.AnnData(np.ones((6, 3), dtype=np.float32), obs=obs, obsm={"spatial": xy})
    factors = {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": 130.0}
    picture = np.full((300, 1300, 3), 200, np.uint8)
    adata.uns["spatial"] = {"S": {"images": {"hires": picture}, "scalefactors": factors}}
    with pytest.raises(Img2GeneError, match="0.4231 µm per pixel, but .* it is 0.5: .* Pass `spot_um=65`"):
        ig.io.from_anndata(adata, spot_um=55)
    back = ig.io.from_anndata(adata, spot_um=65)
    ig.pp.extract_patches(back, patch_um=100)
    assert np.diff(back["table"].obsm["patch_bbox"][0, ::2]) == [200]


def test_more_tiles_than_can_be_stored_are_refused_with_a_stride(study, monkeypatch):
    monkeypatch.setattr(tiles, "_MAX_TILES", 200)
    with pytest.raises(Img2GeneError, match=r"tiles lie on tissue, and at most 200 .*`stride_um=") as caught:
        ig.pp.tile_slide(study, "A1_image", tile_um=50, stride_um=10, patch_um=60, min_tissue=0)
    assert "slide_tiles" not in study.tables
    stride = float(str(caught.value).split("stride_um=")[1].split("`")[0])
    ig.pp.tile_slide(study, "A1_image", tile_um=50, stride_um=stride, patch_um=60, min_tissue=0)
    assert 150 < study["slide_tiles"].n_obs <= 200


def tile(study, image="A1_image", **options):
    ig.pp.tile_slide(study, image, **({"tile_um": 100, "patch_um": 60, "patch_px": 32, "min_tissue": 0} | options))


def test_tiles_of_an_earlier_call_are_replaced(study, copy_of):
    tile(study)
    ig.pp.embed_patches(study, "tiny", table_key="slide_tiles")
    tile(study, tile_um=200)
    fresh = copy_of(study)
    del fresh.tables["slide_tiles"], fresh.shapes["slide_tiles_squares"]
    tile(fresh, tile_um=200)
    assert study["slide_tiles_squares"].equals(fresh["slide_tiles_squares"])
    assert study["slide_tiles"].n_obs == len(study["slide_tiles_squares"]) == 16
    assert study["slide_tiles"].obs.equals(fresh["slide_tiles"].obs)
    # Embeddings of the earlier tiles do not describe the new ones.
    assert set(study["slide_tiles"].obsm) == {"spatial", "patch_bbox"}
    np.testing.assert_array_equal(study["slide_tiles"].obsm["patch_bbox"], fresh["slide_tiles"].obsm["patch_bbox"])


def test_replacing_tiles_of_another_image_is_said(study, caplog):
    tile(study)
    tile(study)
    assert "are replaced" not in caplog.text
    tile(study, "C1_image")
    assert "the tiles of A1_image in 'slide_tiles' are replaced by tiles of C1_image" in caplog.text
    assert study["slide_tiles"].obs["section"].unique().tolist() == ["C1"]


def test_an_interrupted_call_keeps_the_earlier_tiles(study, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    tile(study)
    earlier = study["slide_tiles"], study["slide_tiles_squares"]
    monkeypatch.setattr(tiles, "extract_patches", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tile(study, tile_um=200)
    assert (study["slide_tiles"], study["slide_tiles_squares"])[0] is earlier[0]
    assert study["slide_tiles_squares"] is earlier[1]


def lose_the_record(study):
    _schema.write_json(study["slide_tiles"], "sections", {})


def share_the_name(study):
    study.images["own_squares"] = study.images["A1_image"]


def name_a_table_of_spots(study):
    del study.shapes["slide_tiles_squares"]
    study.tables["slide_tiles_squares"] = study["table"].copy()


def annotate(study):
    study["slide_tiles"].obs["tissue"] = "tumour"
    study["slide_tiles"].obsm["X_mine"] = np.zeros((study["slide_tiles"].n_obs, 2))


USERS = {
    "table and squares": (lose_the_record, {}, "`slide_tiles` exists .* and `tile_slide` did not write it"),
    "image": (share_the_name, {"key_added": "own"}, "`own_squares` exists .* and `tile_slide` did not write it"),
    "table of spots": (
        lambda study: None,
        {"key_added": "table"},
        "`table` exists .* and `tile_slide` did not write it",
    ),
    "another table": (name_a_table_of_spots, {"mpp": 5}, "`slide_tiles_squares` exists .* did not write it"),
    "capitals": (lambda study: None, {"key_added": "Slide_Tiles"}, "`slide_tiles_squares` exists .* did not write it"),
    "columns": (annotate, {}, r"obs\['tissue'\], obsm\['X_mine'\] would be replaced, and img2gene did not write it"),
}


@pytest.mark.parametrize(("change", "options", "message"), USERS.values(), ids=USERS)
def test_what_the_user_wrote_is_not_replaced_by_tiles(study, change, options, message):
    tile(study)
    change(study)
    elements = dict(study.shapes) | dict(study.tables) | dict(study.images)
    with pytest.raises(Img2GeneError, match=message):
        tile(study, **options)
    after = dict(study.shapes) | dict(study.tables) | dict(study.images)
    assert list(after) == list(elements)
    assert all(after[name] is elements[name] for name in elements)


def test_predictions_of_earlier_tiles_stay_only_if_they_fit_the_new_ones(trained_study, copy_of):
    study = copy_of(trained_study)
    tile(study, "C1_image")
    ig.pp.embed_patches(study, "tiny", table_key="slide_tiles")
    ig.tl.predict(study, table_key="slide_tiles", model="img2gene", key_added="slide")
    tile(study, "C1_image")
    predicted = study["slide"]
    ig.pp.embed_patches(study, "tiny", table_key="slide_tiles")
    ig.tl.predict(study, table_key="slide_tiles", model="img2gene", key_added="slide")
    np.testing.assert_array_equal(study["slide"].X, predicted.X)
    for image, options in (("C1_image", {"tile_um": 200}), ("A1_image", {})):
        with pytest.raises(
            Img2GeneError, match=r"tables slide belong to the earlier tiles `slide_tiles`.*del sdata.tables\['slide'\]"
        ):
            tile(study, image, **options)
    del study.tables["slide"]
    tile(study, "C1_image", tile_um=200)
    assert study["slide_tiles"].n_obs == 16
