"""Joining sections: nothing is lost, contradictions are kept apart, clashes are refused."""

import numpy as np
import pandas as pd
import pytest
from spatialdata import SpatialData, read_zarr
from spatialdata.models import TableModel
from spatialdata.transformations import get_transformation

import img2gene as ig
from img2gene import _schema
from img2gene._errors import Img2GeneError
from img2gene._study.expression import labels

GENES = {"S1": ("A", "B", "C", "D"), "S2": ("D", "X", "B", "A")}


@pytest.fixture
def parts(make_section):
    return [make_section(name, f"P{i}", seed=i, n_side=4, genes=GENES[name]) for i, name in enumerate(GENES)]


def embedded(sdata, **options):
    ig.pp.extract_patches(sdata, patch_um=60, patch_px=32)
    ig.pp.embed_patches(sdata, "tiny", **options)
    return sdata


def test_images_and_regions_are_kept_as_they_are(parts):
    joined = ig.io.concat_sections(parts)
    assert sorted(joined.images) == ["S1_image", "S2_image"]
    assert sorted(joined.shapes) == ["S1_spots", "S2_spots"]
    for part in parts:
        for name, image in part.images.items():
            assert joined[name].identical(image)
        for name, shapes in part.shapes.items():
            assert joined[name].equals(shapes)
        for name in (*part.images, *part.shapes):
            assert get_transformation(joined[name], get_all=True) == get_transformation(part[name], get_all=True)


def test_a_mapping_and_any_iterable_are_joined_alike(parts):
    for sections in (dict(zip("xy", parts, strict=True)), iter(parts), tuple(parts)):
        assert list(ig.io.concat_sections(sections)["table"].obs_names) == [
            *parts[0]["table"].obs_names,
            *parts[1]["table"].obs_names,
        ]


def test_the_intersection_keeps_counts_of_shared_genes_in_the_first_tables_order(parts):
    joined = ig.io.concat_sections(parts)["table"]
    assert list(joined.var_names) == ["A", "B", "D"]
    expected = np.vstack([part["table"][:, ["A", "B", "D"]].X.toarray() for part in parts])
    np.testing.assert_array_equal(joined.X.toarray(), expected)


def test_library_sizes_stay_those_of_the_full_transcriptome(parts):
    expected = np.concatenate([part["table"].X.toarray().sum(axis=1) for part in parts])
    for part in parts:
        del part["table"].obs["library_size"]
    joined = ig.io.concat_sections(parts)["table"]
    np.testing.assert_array_equal(joined.obs["library_size"], expected)
    expected = labels(
        parts[1]["table"], np.arange(16), parts[1]["table"].var_names.get_indexer(["A", "B", "D"]), layer=None
    )
    np.testing.assert_array_equal(labels(joined, np.arange(16, 32), np.arange(3), layer=None), expected)


def without_sizes(part, genes=None):
    """The section without its library sizes, and with some of its genes."""
    table = part["table"][:, list(genes)].copy() if genes else part["table"].copy()
    del table.obs["library_size"]
    return SpatialData(images=dict(part.images), shapes=dict(part.shapes), tables={"table": table})


@pytest.mark.parametrize("genes", ["intersection", "union"])
@pytest.mark.parametrize("sizes", [True, False])
def test_a_section_with_fewer_genes_and_no_library_sizes_is_named(make_section, caplog, sizes, genes):
    full = make_section("S1", "P1", n_side=4, genes=GENES["S1"])
    filtered = without_sizes(make_section("S2", "P2", n_side=4, genes=GENES["S1"]), "AB")
    joined = ig.io.concat_sections([full if sizes else without_sizes(full), filtered], genes=genes)["table"]
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
    assert "`sections[1]['table']` (S2_spots) has no obs['library_size']" in caplog.text
    assert "sum over its 2 genes, but all sections together have 4 genes" in caplog.text
    assert "store the sums over all genes in obs['library_size'] before filtering" in caplog.text
    # The section with all genes keeps the sums over all of them.
    expected = full["table"].X.toarray().sum(axis=1)
    np.testing.assert_array_equal(joined.obs["library_size"].to_numpy()[: len(expected)], expected)


def test_library_sizes_of_filtered_genes_show_that_a_section_without_them_was_filtered_too(make_section, caplog):
    sections = [make_section(name, name, n_side=4, genes=GENES["S1"]) for name in ("S1", "S2")]
    one = SpatialData(
        images=dict(sections[0].images),
        shapes=dict(sections[0].shapes),
        tables={"table": sections[0]["table"][:, :2].copy()},
    )
    ig.io.concat_sections([one, without_sizes(sections[1], "AB")])
    assert "library sizes of other sections count more genes than their tables hold" in caplog.text


def test_sections_whose_library_sizes_are_certain_give_no_warning(make_section, caplog):
    one, two, three = (make_section(name, name, n_side=4, genes=GENES["S1"]) for name in ("S1", "S2", "S3"))
    filtered = SpatialData(
        images=dict(three.images), shapes=dict(three.shapes), tables={"table": three["table"][:, :2].copy()}
    )
    ig.io.concat_sections([without_sizes(one), two])
    ig.io.concat_sections([without_sizes(one), without_sizes(two)])
    # The section without library sizes has all genes.
    ig.io.concat_sections([without_sizes(one), filtered])
    assert "library_size" not in caplog.text


@pytest.mark.filterwarnings("ignore:Changing the sparsity structure:scipy.sparse.SparseEfficiencyWarning")
def test_the_union_is_nan_where_a_gene_was_not_measured(parts):
    joined = ig.io.concat_sections(parts, genes="union")["table"]
    assert sorted(joined.var_names) == ["A", "B", "C", "D", "X"]
    counts = pd.DataFrame(joined.X.toarray(), columns=joined.var_names)
    assert counts.loc[:15, "X"].isna().all()
    assert counts.loc[16:, "C"].isna().all()
    np.testing.assert_array_equal(counts.loc[16:, "X"], parts[1]["table"][:, "X"].X.toarray().ravel())
    assert counts[["A", "B", "D"]].notna().all(axis=None)


def test_columns_of_obs_and_their_kinds_survive(parts):
    parts[0]["table"].obs["good"] = True
    for part in parts:
        part["table"].obs["score"] = np.arange(16.0)
        part["table"].obs["zone"] = pd.Categorical(["x", "y"] * 8)
    obs = ig.io.concat_sections(parts)["table"].obs
    assert obs["patient"].tolist() == ["P0"] * 16 + ["P1"] * 16
    assert isinstance(obs["zone"].dtype, pd.CategoricalDtype)
    assert obs["score"].tolist() == [*np.arange(16.0)] * 2
    assert obs["good"].tolist()[:16] == [True] * 16
    assert obs["good"].isna().tolist() == [False] * 16 + [True] * 16
    assert str(obs["good"].dtype) == "boolean"


def test_spots_of_the_same_name_are_told_apart(parts):
    for part in parts:
        part["table"].obs_names = [f"spot{i}" for i in range(16)]
    names = ig.io.concat_sections(parts)["table"].obs_names
    assert names.is_unique
    assert names[0] == "spot0-S1_spots"
    assert names[16] == "spot0-S2_spots"


def test_positions_thumbnails_and_the_readers_records_survive(parts):
    joined = ig.io.concat_sections(parts)["table"]
    assert _schema.read_json(joined, "sections") == {
        name: _schema.read_json(part["table"], "sections")[name] for name, part in zip(GENES, parts, strict=True)
    }
    for name, part in zip(GENES, parts, strict=True):
        picture = part["table"].uns["spatial"][name]["images"]["hires"]
        np.testing.assert_array_equal(joined.uns["spatial"][name]["images"]["hires"], picture)
    np.testing.assert_array_equal(joined.obsm["spatial"], np.vstack([part["table"].obsm["spatial"] for part in parts]))


def test_embedded_sections_join_to_what_the_joined_study_gives_when_embedded(parts):
    whole = embedded(ig.io.concat_sections(parts))["table"]
    joined = ig.io.concat_sections([embedded(part) for part in parts])["table"]
    for key in ("patch_bbox", "X_tiny"):
        np.testing.assert_array_equal(joined.obsm[key], whole.obsm[key])
        assert joined.obsm[key].dtype == whole.obsm[key].dtype
    for key in ("patches", "encoder"):
        assert _schema.read_json(joined, key) == _schema.read_json(whole, key)
    assert ig.get.patches(ig.io.concat_sections(parts), [0, 20]).shape == (2, 12, 12, 3)


def test_parts_are_not_changed(parts, snapshot):
    embedded(parts[0])
    before = [snapshot(part["table"]) for part in parts]
    joined = ig.io.concat_sections(parts)
    joined["table"].uns["img2gene"]["patches"] = "{}"
    joined["table"].uns["spatial"]["S1"]["images"]["hires"][:] = 0
    joined["table"].obs["patient"] = "Z"
    assert [snapshot(part["table"]) for part in parts] == before


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"orientations": 1}, {"orientations": 4}, r"X_tiny.*orientations 1 \(S1_spots\) and 4 \(S2_spots\)\. Run"),
        ({"patch_um": 60}, {"patch_um": 80}, r"(?s)Patches.*patch_um \[60.0\] .*\[80.0\].*X_tiny.*patch_um"),
        ({"patch_px": 32}, {"patch_px": 48}, "(?s)Patches.*patch_px 32 .* and 48"),
    ],
)
def test_embeddings_of_different_settings_are_not_joined(parts, first, second, message):
    for part, settings in zip(parts, (first, second), strict=True):
        orientations = settings.pop("orientations", 2)
        ig.pp.extract_patches(part, **{"patch_um": 60, "patch_px": 32, **settings})
        ig.pp.embed_patches(part, "tiny", orientations=orientations)
    with pytest.raises(Img2GeneError, match=message):
        ig.io.concat_sections(parts)


def test_embeddings_without_a_record_are_not_joined_with_recorded_ones(parts):
    for part in parts:
        embedded(part)
    parts[1]["table"].uns["img2gene"] = {
        key: value for key, value in parts[1]["table"].uns["img2gene"].items() if key != "encoder"
    }
    with pytest.raises(Img2GeneError, match=r"X_tiny.*recorded for \(S1_spots\), not for \(S2_spots\)"):
        ig.io.concat_sections(parts)


def test_each_record_of_an_embedding_stays_with_its_array(parts):
    """The first section has one embedding, the second has two and once had a third."""
    for part in parts:
        embedded(part)
    ig.pp.embed_patches(parts[1], "color-texture")
    joined = ig.io.concat_sections(parts)["table"]
    assert set(_schema.read_json(joined, "encoder")) == {"tiny", "color-texture"}
    del parts[1]["table"].obsm["X_color-texture"]
    joined = ig.io.concat_sections(parts)["table"]
    assert set(_schema.read_json(joined, "encoder")) == {"tiny"}


def test_stale_records_of_another_section_give_way_to_its_own(make_study):
    """A subset keeps the records of the sections that were dropped; theirs have changed since."""
    study = make_study([("A1", "A"), ("B1", "B")], embed=False)
    ig.pp.extract_patches(study, patch_um=60, patch_px=32)
    first, second = (study.subset([f"{name}_image", f"{name}_spots"]) for name in ("A1", "B1"))
    ig.pp.extract_patches(second, patch_um=60, patch_px=32, mpp=2.5)
    second["table"].uns["spatial"]["B1"]["images"]["hires"] = np.zeros((4, 4, 3), np.uint8)
    for parts in ([first, second], [second, first]):
        joined = ig.io.concat_sections(parts)["table"]
        regions = _schema.read_json(joined, "patches")["regions"]
        assert (regions["A1_spots"]["mpp"], regions["B1_spots"]["mpp"]) == (5, 2.5)
        assert joined.uns["spatial"]["B1"]["images"]["hires"].shape == (4, 4, 3)
        assert joined.uns["spatial"]["A1"]["images"]["hires"].shape != (4, 4, 3)
        assert sorted(joined.uns["spatial"]) == ["A1", "B1"]


def test_predictions_of_different_models_are_not_joined_under_one_name(make_study):
    studies = [make_study([(f"{name}1", f"{name}a"), (f"{name}2", f"{name}b")]) for name in "AB"]
    for study, penalty in zip(studies, (1.0, 50.0), strict=True):
        ig.tl.fit(study, "ridge", penalty=penalty)
        ig.tl.predict(study)
    with pytest.raises(Img2GeneError, match=r"layers\['img2gene'\].*fingerprint .*img2gene.tl.predict"):
        ig.io.concat_sections(studies)
    del studies[1]["table"].layers["img2gene"]
    joined = ig.io.concat_sections(studies)["table"]
    assert set(_schema.read_json(joined, "predicted_by")) == {"img2gene"}


def test_duplicate_genes_are_named_before_anything_is_joined(parts):
    for part in parts:
        part["table"].var_names = ["A", "B", "C", "A"]
    for genes in ("intersection", "union"):
        with pytest.raises(Img2GeneError, match=r"(?s)2 problems.*S1_spots has 1 duplicate genes \(A\).*make_unique"):
            ig.io.concat_sections(parts, genes=genes)


@pytest.mark.filterwarnings("ignore:The table is annotating:UserWarning")
def test_spots_are_never_counted_twice_and_never_without_their_region(make_study):
    study = make_study([("A1", "A"), ("B1", "B")], embed=False)
    halves = [study.subset([f"{n}_image", f"{n}_spots"], filter_tables=False) for n in ("A1", "B1")]
    with pytest.raises(
        Img2GeneError, match="name the regions A1_spots, B1_spots, so their spots would be counted twice"
    ):
        ig.io.concat_sections(halves)
    other = make_study([("C1", "C")], embed=False)
    with pytest.raises(
        Img2GeneError, match="name the regions B1_spots, which no section has .*available: A1_spots, C1"
    ):
        ig.io.concat_sections([halves[0], other])


def test_a_table_filtered_in_place_annotates_only_what_is_left(make_study, make_section):
    study = make_study([("A1", "A"), ("B1", "B")], embed=False)
    table = study["table"]
    table._inplace_subset_obs((table.obs["section"] == "A1").to_numpy())
    for parts in ([study], [study, make_section("C1", "C")]):
        joined = ig.io.concat_sections(parts)["table"]
        assert joined.uns["spatialdata_attrs"]["region"] == [f"{n}_spots" for n in ("A1", "C1")[: len(parts)]]


def test_text_and_numbers_in_one_column_can_be_written(parts, tmp_path):
    parts[0]["table"].obs["batch"], parts[1]["table"].obs["batch"] = "one", 2
    for part, value in zip(parts, ("a", 1), strict=True):
        part["table"].obs["lane"] = pd.Categorical([value] * 16)
    joined = ig.io.concat_sections(parts)
    joined.write(tmp_path / "study.zarr")
    obs = read_zarr(tmp_path / "study.zarr")["table"].obs
    assert obs["batch"].tolist() == ["one"] * 16 + ["2"] * 16
    assert obs["lane"].tolist() == ["a"] * 16 + ["1"] * 16


def test_tables_without_genes_and_empty_tables_are_joined(make_section):
    slides = [make_section(name, "P", n_side=4) for name in ("S1", "S2")]
    for slide in slides:
        ig.pp.tile_slide(
            slide, f"{slide['table'].obs['section'].iloc[0]}_image", tile_um=100, patch_um=60, min_tissue=0
        )
    slides[1]["table"]._inplace_subset_obs(np.zeros(16, dtype=bool))
    for slide in slides:
        slide.shapes[f"{slide['slide_tiles'].obs['section'].iloc[0]}_tiles"] = slide.shapes.pop("slide_tiles_squares")
    for slide in slides:
        name = f"{slide['slide_tiles'].obs['section'].iloc[0]}_tiles"
        tiles = slide["slide_tiles"].copy()
        tiles.obs["region"] = pd.Categorical([name] * tiles.n_obs)
        del tiles.uns["spatialdata_attrs"]
        slide.tables["slide_tiles"] = TableModel.parse(tiles, region=name, region_key="region", instance_key="tile_id")
    joined = ig.io.concat_sections(slides)
    assert joined["table"].n_obs == 16
    assert joined["slide_tiles"].shape == (sum(slide["slide_tiles"].n_obs for slide in slides), 0)


@pytest.mark.parametrize("sections", [1, None, "study.zarr", b"x", float("nan"), [None], {"a": 1}, np.ones(2)])
def test_what_is_no_list_of_studies_is_refused(sections):
    with pytest.raises(Img2GeneError, match="SpatialData objects"):
        ig.io.concat_sections(sections)


def test_one_study_instead_of_a_list_is_refused(parts):
    with pytest.raises(Img2GeneError, match="sections is a SpatialData; expected a list"):
        ig.io.concat_sections(parts[0])


@pytest.mark.parametrize("text", ["null", "[1]", "{", "[" * 5000])
def test_a_damaged_record_is_named(parts, text):
    embedded(parts[0])
    parts[0]["table"].uns["img2gene"]["encoder"] = text
    with pytest.raises(Img2GeneError, match="encoder"):
        ig.io.concat_sections(parts)


def test_a_conflicting_model_is_kept_whole(make_study):
    """Both models have the same configuration apart from their arrays and report."""
    studies = [make_study([(f"{name}1", f"{name}a"), (f"{name}2", f"{name}b")]) for name in "AB"]
    for study in studies:
        ig.tl.fit(study, "ridge", key_added="ridge")
    joined = ig.io.concat_sections(studies)
    for key, study in zip(("ridge", "ridge-B1_spots"), studies, strict=True):
        assert ig.get.model(joined, key).fingerprint == ig.get.model(study, "ridge").fingerprint


def test_a_trained_model_survives_and_predicts_the_new_section(trained_study, make_section):
    new = embedded(make_section("D1", "D", seed=9))
    model = ig.get.model(trained_study)
    for order in ([trained_study, new], [new, trained_study]):
        joined = ig.io.concat_sections(order)
        assert ig.get.model(joined).genes == model.genes
        ig.tl.predict(joined)
        rows = (joined["table"].obs["section"] == "D1").to_numpy()
        expected = ig.tl.predict(new, model, inplace=False).X
        np.testing.assert_allclose(joined["table"].layers["img2gene"][rows], expected, atol=1e-5)


def test_a_second_different_model_is_kept_under_another_key(make_study):
    studies = [make_study([(f"{name}1", f"{name}a"), (f"{name}2", f"{name}b")]) for name in "AB"]
    for study, penalty in zip(studies, (1.0, 50.0), strict=True):
        ig.tl.fit(study, "ridge", penalty=penalty)
    joined = ig.io.concat_sections(studies)
    for key, study in zip(("img2gene", "img2gene-B1_spots"), studies, strict=True):
        kept, original = ig.get.model(joined, key), ig.get.model(study)
        assert kept.report == original.report
        features = study["table"].obsm["X_tiny"]
        names = np.array(["x"] * len(features))
        assert kept.predict(features, names).tobytes() == original.predict(features, names).tobytes()


def test_a_joined_study_survives_storage(trained_study, make_section, tmp_path):
    joined = ig.io.concat_sections([trained_study, embedded(make_section("D1", "D", seed=9))])
    ig.tl.predict(joined)
    joined.write(tmp_path / "study.zarr")
    again = read_zarr(tmp_path / "study.zarr")
    for key in ("patch_bbox", "X_tiny", "spatial"):
        np.testing.assert_array_equal(again["table"].obsm[key], joined["table"].obsm[key])
    np.testing.assert_array_equal(again["table"].layers["img2gene"], joined["table"].layers["img2gene"])
    assert _schema.read_json(again["table"], "patches") == _schema.read_json(joined["table"], "patches")
    assert ig.get.model(again).report == ig.get.model(joined).report
    np.testing.assert_array_equal(ig.get.patches(again, [0, 200]), ig.get.patches(joined, [0, 200]))
    ig.tl.predict(again, key_added="anew", model="img2gene")
    np.testing.assert_array_equal(again["table"].layers["anew"], joined["table"].layers["img2gene"])


def test_a_single_part_is_copied(parts, snapshot):
    joined = ig.io.concat_sections(parts[:1])
    assert snapshot(joined["table"]) == snapshot(parts[0]["table"])
    joined["table"].obs["patient"] = "Z"
    assert set(parts[0]["table"].obs["patient"]) == {"P0"}


def without_names(sdata):
    sdata["table"].var_names = [f"ENSG{i}" for i in range(sdata["table"].n_vars)]


def other_instance_column(sdata):
    table = sdata["table"].copy()
    table.obs["cell"] = table.obs["spot_id"]
    del table.uns["spatialdata_attrs"]
    sdata.tables["table"] = TableModel.parse(table, region="S2_spots", region_key="region", instance_key="cell")


def test_what_cannot_be_joined_is_refused(parts, make_section):
    with pytest.raises(Img2GeneError, match="`sections` is empty"):
        ig.io.concat_sections([])
    with pytest.raises(Img2GeneError, match="Expected SpatialData objects, got AnnData"):
        ig.io.concat_sections([parts[0], parts[1]["table"]])
    with pytest.raises(Img2GeneError, match="genes='outer': expected one of intersection, union"):
        ig.io.concat_sections(parts, genes="outer")
    with pytest.raises(
        Img2GeneError, match="(?s)2 problems:.*images with the same name in two sections: S1_image.*shapes .*S1_spots"
    ):
        ig.io.concat_sections([*parts, make_section("S1", "P9", n_side=4)])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_names, "have no gene in common .*Symbols in one and Ensembl ids in another"),
        (other_instance_column, "name their regions and instances in different columns"),
        (lambda s: s["table"].obsm.__setitem__("spatial", np.zeros((16, 3))), r"`obsm\['spatial'\]` of `table` has different widths \(2, 3\)"),
    ],
)  # fmt: skip
def test_tables_that_do_not_fit_are_refused(parts, spoil, message):
    spoil(parts[1])
    with pytest.raises(Img2GeneError, match=message):
        ig.io.concat_sections(parts)


def test_tables_of_other_keys_and_parts_without_tables_come_along(parts):
    parts[0].tables["cells"] = parts[0]["table"].copy()
    image_only = SpatialData(images={"S3_image": parts[0]["S1_image"].copy()})
    joined = ig.io.concat_sections([*parts, image_only])
    assert sorted(joined.tables) == ["cells", "table"]
    assert joined["cells"].n_obs == 16
    assert "S3_image" in joined.images


def test_anndata_of_squidpys_layout_round_trips(parts):
    joined = ig.io.concat_sections(parts)
    adata = ig.io.to_anndata(joined)
    back = ig.io.from_anndata(adata, spot_um=55, library_key="section", patient_key="patient")
    np.testing.assert_array_equal(back["table"].X.toarray(), joined["table"].X.toarray())
    np.testing.assert_allclose(back["table"].obsm["spatial"], joined["table"].obsm["spatial"])
    assert back["table"].obs["patient"].tolist() == joined["table"].obs["patient"].tolist()
    for name in ("S1", "S2"):
        np.testing.assert_array_equal(back[f"{name}_image"].values, joined[f"{name}_image"].values)
    ig.pp.extract_patches(back, patch_um=60)
    assert _schema.read_json(back["table"], "patches")["regions"]["S1_spots"]["mpp"] == pytest.approx(5)


def test_one_name_for_sections_of_two_slides_is_refused(parts):
    for part in parts:
        part["table"].obs["section"] = "core1"
    with pytest.raises(Img2GeneError, match="call a section core1, so spots of different slides"):
        ig.io.concat_sections(parts)


def located(study, section, markers):
    part = study.subset([f"{section}_image", f"{section}_spots"])
    ig.tl.localize(part, {"T": markers}, threshold=0.5)
    return part


def test_localisations_of_different_markers_are_not_joined_under_one_name(make_study):
    study = make_study()
    ig.tl.fit(study, "ridge", validate_on=["B", "C"])
    ig.tl.predict(study)
    genes = ig.get.model(study).genes
    with pytest.raises(Img2GeneError, match="Localisations 'localization' of `table` differ: markers .*tl.localize"):
        ig.io.concat_sections([located(study, "B1", genes[:2]), located(study, "C1", genes[2:4])])
    parts = [located(study, name, genes[:2]) for name in ("B1", "C1")]
    joined = ig.io.concat_sections(parts)["table"]
    record = _schema.read_json(joined, "localization")["localization"]
    assert record["sections"] == ["B1", "C1"]
    assert record["thresholds"] == {"T": {"B1": 0.5, "C1": 0.5}}
    assert joined.obs["localization_T"].notna().all()


def test_a_joined_panel_names_all_sections_that_chose_it(parts):
    for part in parts:
        part["table"].var["panel"] = part["table"].var_names.isin(["A", "B"])
        name = part["table"].obs["section"].iloc[0]
        _schema.write_json(part["table"], "panel", {"sections": [name], "by": "mean"})
    joined = ig.io.concat_sections(parts)["table"]
    assert joined.var["panel"].tolist() == joined.var_names.isin(["A", "B"]).tolist()
    assert _schema.read_json(joined, "panel")["sections"] == ["S1", "S2"]
