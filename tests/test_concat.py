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


def test_different_embeddings_of_one_name_are_not_taken_for_one(parts):
    embedded(parts[0], orientations=1)
    embedded(parts[1], orientations=4)
    joined = ig.io.concat_sections(parts)["table"]
    assert _schema.read_json(joined, "encoder")["tiny"]["orientations"] == 1
    kept = _schema.read_json(joined, "encoder", uns="img2gene-S2_spots")
    assert kept["tiny"]["orientations"] == 4


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
    with pytest.raises(Img2GeneError, match="genes='outer': choose 'intersection' or 'union'"):
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
