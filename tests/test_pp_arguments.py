"""Functions that prepare a study check all arguments before the work, and write all or nothing."""

import numpy as np
import pytest

import img2gene as ig
from img2gene import _schema
from img2gene._errors import Img2GeneError

NAN = float("nan")
CALLS = {
    "extract_patches": lambda sdata, **options: ig.pp.extract_patches(sdata, **({"patch_um": 60} | options)),
    "embed_patches": lambda sdata, **options: ig.pp.embed_patches(sdata, **({"encoder": "tiny"} | options)),
    "tile_slide": lambda sdata, **options: ig.pp.tile_slide(
        sdata, **({"image_key": "A1_image", "tile_um": 100, "patch_um": 60, "min_tissue": 0} | options)
    ),
    "select_genes": lambda sdata, **options: ig.pp.select_genes(sdata, **({"n_genes": 5} | options)),
    "score_pathways": lambda sdata, **options: ig.pp.score_pathways(
        sdata, {"one": ["G00", "G03", "G06"]}, **({"min_genes": 2} | options)
    ),
}
FAULTS = [
    ("extract_patches", {"patch_um": "wide", "patch_px": NAN, "mpp": NAN, "spot_um": -1, "images": ["A1_image"]}),
    ("extract_patches", {"patch_um": [60, None]}),
    ("extract_patches", {"patch_um": []}),
    ("extract_patches", {"mpp": {"A1_spots": "5"}}),
    ("extract_patches", {"images": {"A1_spots": ["A1_image"]}}),
    ("extract_patches", {"table_key": ["table"], "inplace": 1}),
    ("embed_patches", {"encoder": ["tiny"], "orientations": 3, "batch_size": 0, "num_workers": NAN, "device": 5}),
    ("embed_patches", {"num_workers": NAN}),
    ("embed_patches", {"num_workers": 1e9}),
    ("embed_patches", {"orientations": [2]}),
    ("embed_patches", {"amp": "yes", "backend": 3, "tokens": NAN}),
    ("tile_slide", {"patch_um": "y", "patch_px": "x", "min_tissue": NAN, "patient": 5}),
    ("tile_slide", {"image_key": ["A1_image"], "key_added": ["slide_tiles"]}),
    ("tile_slide", {"tile_um": 1e-300, "stride_um": 1e-300}),
    ("tile_slide", {"mpp": 1e300}),
    ("tile_slide", {"patch_um": 1e9}),
    ("select_genes", {"by": ["mean"], "min_detection": "1", "layer": ["x"], "sections": 1.5, "key_added": ["panel"]}),
    ("select_genes", {"n_genes": NAN}),
    ("score_pathways", {"method": ["aucell"], "organism": {}, "n_top": True, "gene_ids": ["x"], "encoder": ["tiny"]}),
    ("score_pathways", {"seed": -1, "min_genes": 2.5, "sections": []}),
]


@pytest.mark.parametrize(("call", "options"), FAULTS)
def test_all_faulty_arguments_are_named_and_nothing_is_written(study, snapshot, call, options):
    before, elements = snapshot(study["table"]), (set(study.shapes), set(study.tables))
    with pytest.raises(Img2GeneError) as caught:
        CALLS[call](study, **options)
    assert not [name for name in options if name not in str(caught.value)]
    assert snapshot(study["table"]) == before
    assert (set(study.shapes), set(study.tables)) == elements


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("value", [None, 5, "study", []])
def test_what_is_no_study_is_refused(call, value):
    with pytest.raises(Img2GeneError, match="Expected a SpatialData"):
        CALLS[call](value)


def test_numpy_scalars_are_numbers(study):
    CALLS["extract_patches"](study, patch_um=np.float32(60), patch_px=np.int64(32), mpp=np.float64(5))
    CALLS["embed_patches"](study, orientations=np.int8(2), batch_size=np.int64(7), num_workers=np.uint8(0))
    CALLS["select_genes"](study, n_genes=np.int64(5), min_detection=np.float32(0.1))
    CALLS["score_pathways"](study, n_top=np.int64(5), seed=np.int64(3))
    CALLS["tile_slide"](study, tile_um=np.float32(100), mpp=np.float64(5), patch_px=np.int32(32))
    assert study["slide_tiles"].n_obs > 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("call", CALLS)
def test_an_interrupted_write_leaves_the_study_as_it_was(study, snapshot, monkeypatch, call, error):
    write, n_writes = _schema.write_json, []

    def interrupted(table, key, value, **options):
        # `tile_slide` writes the record of its new table first.
        n_writes.append(key)
        if len(n_writes) > (call == "tile_slide"):
            raise error
        write(table, key, value, **options)

    before, elements = snapshot(study["table"]), (set(study.shapes), set(study.tables))
    monkeypatch.setattr(_schema, "write_json", interrupted)
    with pytest.raises(error):
        CALLS[call](study, **({"patch_um": 100} if call == "extract_patches" else {}))
    assert n_writes
    assert snapshot(study["table"]) == before
    assert (set(study.shapes), set(study.tables)) == elements


def test_patches_need_a_section_in_every_row_before_anything_is_written(study, snapshot):
    study["table"].obs["section"] = [None, *study["table"].obs["section"].astype(str)[1:]]
    before = snapshot(study["table"])
    with pytest.raises(Img2GeneError, match="`obs\\['section'\\]` is missing in 1 rows"):
        CALLS["extract_patches"](study, patch_um=100)
    assert snapshot(study["table"]) == before


def test_a_slide_can_be_tiled_after_a_refused_call(study):
    for options in ({"patch_px": "x"}, {"patch_um": "y"}, {"patch_um": 5000}):
        with pytest.raises(Img2GeneError):
            CALLS["tile_slide"](study, **options)
    CALLS["tile_slide"](study)
    assert "patch_bbox" in study["slide_tiles"].obsm


@pytest.mark.parametrize("patch_um", [1e5, 1e9, 1e18, 1e300])
def test_fields_of_view_are_bounded_by_the_image(study, patch_um):
    # 160 px of 5 µm: a window of 320 px shows all of the image around any spot.
    CALLS["extract_patches"](study, patch_um=1600)
    with pytest.raises(
        Img2GeneError, match=r"image `A1_image`, whose longer side has 160 .* the largest field is 1600 µm"
    ):
        CALLS["extract_patches"](study, patch_um=(60, patch_um))


OF_THE_USER = {
    "patch_tissue": (lambda table: table.obs.insert(0, "patch_tissue", "mine"), r"obs\['patch_tissue'\]"),
    "X_tiny": (lambda table: table.obsm.update({"X_tiny": np.ones((table.n_obs, 2))}), r"obsm\['X_tiny'\]"),
    "highly_variable": (lambda table: table.var.insert(0, "highly_variable", True), r"var\['highly_variable'\]"),
    "panel": (lambda table: table.var.insert(0, "panel", True), r"var\['panel'\]"),
}


@pytest.mark.parametrize("name", OF_THE_USER)
def test_columns_of_the_user_are_never_replaced(make_study, snapshot, name):
    study = make_study([("A1", "A"), ("B1", "B")], embed=False)
    write, shown = OF_THE_USER[name]
    calls = {
        "patch_tissue": lambda: ig.pp.extract_patches(study, patch_um=60, patch_px=32),
        "X_tiny": lambda: ig.pp.embed_patches(study, "tiny"),
        "highly_variable": lambda: ig.pp.select_genes(study, 5, key_added="highly_variable"),
        "panel": lambda: ig.pp.select_genes(study, 5),
    }
    if name == "X_tiny":
        calls["patch_tissue"]()
    clean = snapshot(study["table"])
    write(study["table"])
    before = snapshot(study["table"])
    assert clean != before
    with pytest.raises(Img2GeneError, match=f"{shown} would be replaced, and img2gene did not write it"):
        calls[name]()
    assert snapshot(study["table"]) == before


def test_results_of_the_package_are_replaced(make_study):
    study = make_study([("A1", "A"), ("B1", "B")])
    ig.pp.extract_patches(study, patch_um=80, patch_px=32)
    ig.pp.embed_patches(study, "tiny")
    for key in ("panel", "mine", "mine", "panel"):
        ig.pp.select_genes(study, 5, key_added=key)
    assert _schema.read_json(study["table"], "panels") == {"mine": {"sections": ["A1", "B1"], "by": "mean"}}
    assert study["table"].var["mine"].sum() == 5
