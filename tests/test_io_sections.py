"""Image files by colour mode, one section from its parts, and hostile arguments of the readers."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from PIL import Image

import img2gene as ig
from img2gene._errors import Img2GeneError
from img2gene._study.sections import text_labels
from img2gene.io import hest
from img2gene.io.image_files import read_image

PINK = (200, 120, 170)
FLAT = np.full((40, 50, 3), PINK, np.uint8)


def save(path, mode, **options):
    picture = Image.fromarray(FLAT)
    converted = picture.quantize(8) if mode == "P" else picture.convert(mode)
    converted.save(path, **options)
    return path


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("RGB", "a.png"),
        ("RGB", "a.jpg"),
        ("RGB", "a.tif"),
        ("CMYK", "a.jpg"),
        ("CMYK", "a.tif"),
        ("P", "a.png"),
        ("P", "a.gif"),
        ("RGBA", "a.png"),
        ("YCbCr", "a.jpg"),
        ("YCbCr", "a.tif"),
    ],
)
def test_colour_modes_give_the_colours_that_are_seen(tmp_path, mode, name):
    pixels = read_image(save(tmp_path / name, mode))
    assert pixels.shape == (40, 50, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - PINK).max() <= 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16", "F", "LAB"])
def test_grey_images_and_uncertain_modes_are_refused(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode in ("F", "LAB") else "a.png")
    if mode == "I;16":
        Image.fromarray(FLAT[..., 0].astype(np.uint16) * 256).save(path)
    else:
        save(path, mode)
    with pytest.raises(Img2GeneError, match=rf"{path.name}: .*mode '{mode}'"):
        read_image(path)


def test_transparent_pixels_are_laid_over_white(tmp_path):
    save(tmp_path / "rgb.png", "RGB", transparency=PINK)
    assert (read_image(tmp_path / "rgb.png") == 255).all()
    save(tmp_path / "palette.png", "P", transparency=bytes([0] * 8))
    assert (read_image(tmp_path / "palette.png") == 255).all()


def test_palettes_without_the_colours_of_a_stain_are_refused(tmp_path):
    Image.fromarray(FLAT[..., 0]).convert("P").save(tmp_path / "grey.png")
    with pytest.raises(Img2GeneError, match="no colour but grey"):
        read_image(tmp_path / "grey.png")
    Image.fromarray(FLAT).convert("P").save(tmp_path / "web.png")
    with pytest.raises(Img2GeneError, match="216 colours of the web"):
        read_image(tmp_path / "web.png")


@pytest.mark.parametrize("planes", [False, True])
def test_sixteen_bits_are_scaled_only_if_their_range_is_certain(tmp_path, planes):
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "a.tif"
    for factor, match in ((257, None), (16, "intensity scale is not certain")):
        deep = FLAT.astype(np.uint16) * factor
        if planes:
            tifffile.imwrite(path, np.moveaxis(deep, -1, 0), photometric="rgb", planarconfig="separate")
        else:
            tifffile.imwrite(path, deep, photometric="rgb")
        if match or planes:
            with pytest.raises(Img2GeneError, match="intensity scale is not certain"):
                read_image(path)
        else:
            np.testing.assert_array_equal(read_image(path), FLAT)


def test_files_that_are_no_whole_images_are_named(tmp_path):
    whole = save(tmp_path / "a.png", "RGB").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:60])
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "empty.png").touch()
    for name in ("cut.png", "text.png", "empty.png", "absent.png", "."):
        with pytest.raises(Img2GeneError, match="cannot be read as an image"):
            read_image(tmp_path / name)


# One section


def parts(**changes):
    table = ad.AnnData(np.full((2, 3), 5, np.float32), obs=pd.DataFrame(index=["a", "b"]))
    values = {"image": FLAT, "xy": np.ones((2, 2)), "table": table, "section": "S1", "patient": "P1"}
    return values | {"mpp": 1.0, "spot_um": 5.0} | changes


def build(**changes):
    return ig.io.build_section(**parts(**changes))


@pytest.mark.parametrize(
    ("column", "value"), [("region", "cortex"), ("section", "S2"), ("patient", "P2"), ("spot_id", "x")]
)
def test_columns_of_the_user_are_not_overwritten(column, value, snapshot):
    table = parts()["table"]
    table.X = sp.csr_matrix(table.X)
    table.obs[column] = value
    before = snapshot(table)
    with pytest.raises(Img2GeneError, match=f"already has {column} with other values"):
        build(table=table)
    assert snapshot(table) == before


def test_the_same_table_can_be_built_again():
    table = build()["table"]
    assert build(table=table)["table"].obs["section"].tolist() == ["S1", "S1"]


def test_library_sizes_of_the_user_are_kept_or_refused():
    table = parts()["table"]
    table.obs["library_size"] = [100, 200]
    assert build(table=table)["table"].obs["library_size"].tolist() == [100, 200]
    assert build()["table"].obs["library_size"].tolist() == [15, 15]
    for bad in (1, True, np.inf, -5.0, "many"):
        table = parts()["table"]
        table.obs["library_size"] = bad
        with pytest.raises(Img2GeneError, match="library_size"):
            build(table=table)
        assert list(table.obs) == ["library_size"]


def test_sums_of_small_types_do_not_overflow():
    counts = np.full((2, 300), 250, dtype=np.uint8)
    for matrix in (counts, sp.csr_matrix(counts), sp.csc_matrix(counts)):
        table = ad.AnnData(matrix, obs=pd.DataFrame(index=["a", "b"]))
        assert build(table=table)["table"].obs["library_size"].tolist() == [75_000, 75_000]


def test_numpy_scalars_are_numbers_and_numbers_name_donors():
    sdata = build(mpp=np.float32(1), spot_um=np.int64(5), patient=np.int64(7))
    assert sdata["table"].obs["patient"].tolist() == ["7", "7"]
    assert sdata["S1_spots"]["radius"].tolist() == [2.5, 2.5]


def test_a_failure_at_the_end_leaves_the_table_as_it_was(monkeypatch, snapshot):
    from spatialdata.models import TableModel

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    table = parts()["table"]
    table.X = sp.csr_matrix(table.X)
    before = snapshot(table)
    monkeypatch.setattr(TableModel, "parse", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(table=table)
    assert snapshot(table) == before


HOSTILE = [None, True, np.nan, np.inf, -1, 0, "", "a\0b", [], {}, [1, [2]], object(), b"x", 1e400, np.ones((2, 2)), {1}]
BUILD = ("image", "xy", "table", "section", "patient", "mpp", "spot_um")
LEGACY = ("counts", "image", "spots", "section", "patient", "spot_um", "mpp", "pitch_um")


@pytest.mark.parametrize("name", BUILD)
def test_hostile_arguments_of_build_section(name):
    for value in HOSTILE:
        try:
            build(**{name: value})
        except Img2GeneError:
            continue
        assert (name == "patient" and (value is None or isinstance(value, str | int))) or name == "xy", value


@pytest.mark.parametrize("name", LEGACY)
def test_hostile_arguments_of_read_legacy_st(name, tmp_path):
    counts = tmp_path / "c.tsv"
    spots = [(x, y) for x in (2, 3, 4) for y in (5, 6, 7)]
    pd.DataFrame(1, index=[f"{x}x{y}" for x, y in spots], columns=["A", "B"]).to_csv(counts, sep="\t")
    image = np.full((340, 320, 3), 9, np.uint8)
    valid = {"counts": counts, "image": image, "section": "S"}
    ig.io.read_legacy_st(**valid)
    for value in [*HOSTILE, tmp_path, tmp_path / "absent"]:
        try:
            ig.io.read_legacy_st(**{**valid, name: value})
        except Img2GeneError:
            continue
        assert name == "patient" or (name in ("spots", "mpp") and value is None), value


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "cannot be read as a tab-separated table"),
        ("a\n", "no counts found"),
        ("\tA\n1x2\t1\n1.2.3x4\t1\n", "row names must be array coordinates"),
        ("\tA\n1x2\tTrue\n", "columns that are not numbers: A"),
        ("\xff\xfe\x00", "cannot be read|no counts found"),
    ],
)
def test_count_files_that_are_no_tables_are_named(tmp_path, text, match):
    (tmp_path / "c.tsv").write_bytes(text.encode("latin-1"))
    with pytest.raises(Img2GeneError, match=match):
        ig.io.read_legacy_st(tmp_path / "c.tsv", FLAT, section="S")
    (tmp_path / "c.tsv.gz").write_bytes(b"\x1f\x8b\x08broken")
    with pytest.raises(Img2GeneError, match="cannot be read as a tab-separated table"):
        ig.io.read_legacy_st(tmp_path / "c.tsv.gz", FLAT, section="S")


@pytest.mark.parametrize(
    ("spots", "match"),
    [
        ("x\ty\tpixel_x\tpixel_y\n2\t5\ta\t1\n", "columns pixel_x hold values that are no numbers"),
        ("x\ty\tpixel_x\tpixel_y\n2\t5\t\t1\n", "columns pixel_x hold values that are no numbers, or none"),
        ("x\ty\tpixel_x\tpixel_y\tselected\n2\t5\t1\t1\tmaybe\n", "selected holds maybe; expected 0 or 1"),
    ],
)
def test_spot_files_with_values_of_no_use_are_named(tmp_path, spots, match):
    (tmp_path / "c.tsv").write_text("\tA\n2x5\t1\n2x6\t1\n")
    (tmp_path / "s.tsv").write_text(spots)
    with pytest.raises(Img2GeneError, match=match):
        ig.io.read_legacy_st(tmp_path / "c.tsv", FLAT, tmp_path / "s.tsv", section="S")


# HEST


@pytest.mark.parametrize("call", [hest.find, hest.panel, hest.splits, hest.metadata, hest.patients])
def test_hest_takes_text_and_refuses_what_is_no_path(call, tmp_path):
    call(str(tmp_path))
    for value in (None, 1, "", "a\0", [], np.nan):
        with pytest.raises(Img2GeneError, match="folder="):
            call(value)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"genes": 1}', '{"genes": [1]}', "[" * 10_000])
def test_damaged_gene_lists_of_hest_are_named(tmp_path, text):
    (tmp_path / "var_50genes.json").write_text(text)
    with pytest.raises(Img2GeneError, match="var_50genes.json holds no list"):
        hest.panel(tmp_path)


def test_damaged_files_of_hest_are_named(tmp_path):
    import h5py

    for folder in ("adata", "patches"):
        (tmp_path / folder).mkdir()
    with pytest.raises(Img2GeneError, match=r"S1.h5 cannot be read as HDF5"):
        hest.read_section(tmp_path, "S1", None)
    (tmp_path / "patches" / "S1.h5").write_text("text")
    with pytest.raises(Img2GeneError, match=r"S1.h5 cannot be read as HDF5"):
        hest.read_section(tmp_path, "S1", None)
    with h5py.File(tmp_path / "patches" / "S1.h5", "w") as file:
        file["img"] = np.zeros((2, 8, 9, 3), dtype=np.uint8)
        file["coords"] = np.zeros((2, 2))
        file["barcode"] = np.array([b"a", b"b"])
    with pytest.raises(Img2GeneError, match=r"expected one patch uint8 \(side, side, 3\)"):
        hest.read_section(tmp_path, "S1", None)
    (tmp_path / "HEST_v1.csv").write_text("id,patient\nS1,1\nS1,2\n")
    (tmp_path / "IDC").mkdir()
    with pytest.raises(Img2GeneError, match="names each section once"):
        hest.metadata(tmp_path / "IDC")


# Row labels


@pytest.mark.parametrize("value", [["a"], np.ones(2), {"a": 1}, ("a", "b")])
def test_labels_that_are_no_names_are_refused(value):
    column = pd.Series(["x", None], dtype=object)
    column[1] = value
    with pytest.raises(Img2GeneError, match=r"obs\['section'\]` holds \w+ in 1 rows"):
        text_labels(column, "section")


@pytest.mark.parametrize("value", [None, np.nan, pd.NA, pd.NaT, "", " ", "nan"])
def test_missing_labels_are_counted(value):
    with pytest.raises(Img2GeneError, match="is missing in 1 rows"):
        text_labels(pd.Series(["x", value], dtype=object), "section")


def test_numbers_and_dates_are_names():
    assert text_labels(pd.Series([1, 2]), "section").tolist() == ["1", "2"]
    assert text_labels(pd.Series(pd.to_datetime(["2020-01-02"])), "section").tolist() == ["2020-01-02"]


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("suffix", ["jpg", "tif", "png"])
def test_images_that_a_tag_turns_are_refused(tmp_path, suffix, orientation):
    picture = Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3))
    exif = Image.Exif()
    exif[274] = orientation
    picture.save(tmp_path / f"turned.{suffix}", exif=exif)
    with pytest.raises(Img2GeneError, match=f"orientation tag is {orientation}, .*without the tag"):
        read_image(tmp_path / f"turned.{suffix}")
    for upright in (0, 1):
        exif[274] = upright
        picture.save(tmp_path / f"upright.{suffix}", exif=exif)
        assert read_image(tmp_path / f"upright.{suffix}").shape == (10, 10, 3)


def test_of_several_pages_the_first_is_read_if_none_is_larger(tmp_path):
    large, small = (Image.fromarray(np.full((side, side, 3), side, dtype=np.uint8)) for side in (20, 10))
    large.save(tmp_path / "pyramid.tif", save_all=True, append_images=[small])
    assert (read_image(tmp_path / "pyramid.tif") == np.full((20, 20, 3), 20)).all()
    small.save(tmp_path / "thumbnail.tif", save_all=True, append_images=[small, large])
    with pytest.raises(Img2GeneError, match="first of 3 pages has 10 × 10 px, and page 3 has 20 × 20"):
        read_image(tmp_path / "thumbnail.tif")


@pytest.mark.parametrize("suffix", ["tif", "png", "gif", "webp"])
def test_several_pages_of_one_size_are_refused_with_their_number(tmp_path, suffix):
    planes = [Image.fromarray(np.full((20, 20, 3), level, dtype=np.uint8)) for level in (20, 120, 220)]
    small = Image.fromarray(np.full((10, 10, 3), 90, dtype=np.uint8))
    pages = [*planes[1:], small] if suffix == "tif" else planes[1:]
    planes[0].save(tmp_path / f"stack.{suffix}", save_all=True, append_images=pages)
    n_pages = len(pages) + 1
    with pytest.raises(Img2GeneError, match=f"stack.{suffix}: 3 of {n_pages} pages have the same size of 20 × 20 px"):
        read_image(tmp_path / f"stack.{suffix}")
