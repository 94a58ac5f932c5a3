"""The reader of legacy Spatial Transcriptomics sections: real sections, and what it refuses."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import img2gene as ig
from img2gene import _schema
from img2gene._errors import Img2GeneError

PIXELS = np.random.default_rng(0).integers(0, 256, (340, 320, 3), dtype=np.uint8)
SPOTS = [(x, y) for x in (2, 3, 4) for y in (5, 6, 7)]


def counts_frame():
    values = np.arange(len(SPOTS) * 4).reshape(-1, 4) % 7
    return pd.DataFrame(values, index=[f"{x}x{y}" for x, y in SPOTS], columns=["A", "B", "C", "D"])


def spot_frame():
    """Spots at x · 30 + 1, y · 30 + 2 pixels, listed backwards, with two that have no counts."""
    listed = [*SPOTS[::-1], (9, 9), (8, 8)]
    frame = pd.DataFrame(listed, columns=["x", "y"])
    return frame.assign(pixel_x=frame.x * 30.0 + 1, pixel_y=frame.y * 30.0 + 2, selected=1)


@pytest.fixture
def read(tmp_path):
    """Write the frames and read them as a section."""

    def call(counts=None, spots=None, image=PIXELS, **options):
        (counts_frame() if counts is None else counts).to_csv(tmp_path / "counts.tsv", sep="\t")
        if spots is not None:
            spots.to_csv(tmp_path / "spots.tsv", sep="\t", index=False)
        where = None if spots is None else tmp_path / "spots.tsv"
        return ig.io.read_legacy_st(tmp_path / "counts.tsv", image, where, section="S", **options)

    return call


def record(sdata):
    return _schema.read_json(sdata["table"], "sections")


def places(sdata, section="S"):
    table, shapes = sdata["table"], sdata[f"{section}_spots"].loc[sdata["table"].obs["spot_id"]]
    return pd.DataFrame({"x": shapes.geometry.x.to_numpy(), "y": shapes.geometry.y.to_numpy()}, index=table.obs_names)


def test_counts_positions_and_microns_by_hand(read):
    sdata = read(spots=spot_frame(), patient="P")
    table = sdata["table"]
    assert list(table.obs_names) == [f"S_{x}x{y}" for x, y in SPOTS]
    np.testing.assert_array_equal(table.X.toarray(), counts_frame().to_numpy())
    np.testing.assert_array_equal(table.obs["library_size"], counts_frame().sum(axis=1))
    assert set(table.obs["patient"]) == {"P"}
    assert set(table.obs["section"]) == {"S"}
    np.testing.assert_allclose(places(sdata), [[x * 30 + 1, y * 30 + 2] for x, y in SPOTS])
    np.testing.assert_allclose(table.obsm["spatial"], places(sdata))
    # 30 px are 200 µm, so a spot of 100 µm is 15 px wide
    assert record(sdata)["S"]["mpp"] == pytest.approx(200 / 30)
    np.testing.assert_allclose(sdata["S_spots"]["radius"], 7.5)
    np.testing.assert_array_equal(np.moveaxis(sdata["S_image"].values, 0, -1), PIXELS)


def test_microns_that_are_given_are_kept(read):
    sdata = read(spots=spot_frame(), mpp=4.0, spot_um=80)
    assert record(sdata)["S"]["mpp"] == 4
    np.testing.assert_allclose(sdata["S_spots"]["radius"], 10)
    assert record(read(spots=spot_frame(), pitch_um=150))["S"]["mpp"] == pytest.approx(5)


def test_without_a_patient_there_is_no_such_column(read):
    assert "patient" not in read(spots=spot_frame())["table"].obs


def test_without_a_spot_file_the_image_is_the_array_frame(read):
    # 32 steps over 320 px and 34 over 340: ten pixels each
    np.testing.assert_allclose(places(read()), [[(x - 1) * 10, (y - 1) * 10] for x, y in SPOTS])
    assert record(read())["S"]["mpp"] == pytest.approx(20)


def test_fractional_array_coordinates_keep_their_fraction_without_a_spot_file(read):
    counts = counts_frame()
    counts.index = [f"{x + 0.25}x{y - 0.5}" for x, y in SPOTS]
    np.testing.assert_allclose(places(read(counts)), [[(x - 0.75) * 10, (y - 1.5) * 10] for x, y in SPOTS])


def test_only_selected_spots_are_kept(read):
    spots = spot_frame()
    spots.loc[(spots.x == 3) & (spots.y == 6), "selected"] = 0
    sdata = read(spots=spots)
    assert list(sdata["table"].obs_names) == [f"S_{x}x{y}" for x, y in SPOTS if (x, y) != (3, 6)]
    assert len(sdata["S_spots"]) == 8
    np.testing.assert_array_equal(sdata["table"].X.toarray(), counts_frame().drop("3x6").to_numpy())


def test_an_image_file_gives_its_pixels_and_rgba_is_laid_over_white(read, tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "he.png")
    np.testing.assert_array_equal(np.moveaxis(read(image=tmp_path / "he.png")["S_image"].values, 0, -1), PIXELS)
    clear = np.concatenate([PIXELS, np.zeros((*PIXELS.shape[:2], 1), np.uint8)], axis=-1)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    assert (read(image=tmp_path / "clear.png")["S_image"].values == 255).all()


def test_a_grey_image_is_refused(read, tmp_path):
    Image.fromarray(PIXELS[..., 0]).save(tmp_path / "grey.png")
    with pytest.raises(Img2GeneError, match=r"grey.png: expected .* \(grey images are refused\)"):
        read(image=tmp_path / "grey.png")


def with_value(row, column, value):
    counts = counts_frame().astype(object)
    counts.iloc[row, column] = value
    return counts


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (with_value(1, 2, -3), "holds 1 negative values; counts are at least 0"),
        (with_value(1, 2, np.nan), "holds 1 NaN values; counts must be complete"),
        (with_value(1, 2, 0.5), "holds fractions .* looks normalised or log-transformed"),
        (with_value(1, 2, np.inf), "holds infinite values"),
        (with_value(1, 2, "many"), "columns that are not numbers: C"),
        (counts_frame().rename(index={"2x6": "2x5"}), "duplicate spots: 2x5"),
        (
            counts_frame().rename(index={"2x6": "spot7"}),
            "row names must be array coordinates such as 10x21, but are spot7",
        ),
        (counts_frame()[["A", "B", "C", "A"]], "duplicate genes: A"),
    ],
)
def test_tables_that_are_not_raw_counts_are_refused(read, counts, message):
    with pytest.raises(Img2GeneError, match=rf"(?s)counts.tsv.*{message}"):
        read(counts)


def test_genes_with_different_counts_and_similar_names_are_not_duplicates(read):
    counts = counts_frame().rename(columns={"B": "A.1"})
    assert list(read(counts)["table"].var_names) == ["A", "A.1", "C", "D"]


def test_all_problems_of_a_table_come_together(read):
    counts = with_value(0, 0, -1).rename(index={"2x6": "2x5"})
    with pytest.raises(Img2GeneError, match="(?s)2 problems:.*negative values.*duplicate spots"):
        read(counts)


@pytest.mark.parametrize(
    ("spots", "message"),
    [
        (spot_frame().drop(columns=["pixel_x"]), r"columns pixel_x not found \(available: x, y, pixel_y, selected\)"),
        (pd.concat([spot_frame(), spot_frame()[:1]]), r"array position listed twice: \(4, 7\)"),
        (spot_frame().assign(x=spot_frame().x + 20), "0 spots are in both files, of 9 counted and 11 selected spots"),
        (spot_frame().assign(pixel_x=-spot_frame().pixel_x), "may be swapped or mirrored"),
        (spot_frame().assign(pixel_y=spot_frame().pixel_y * 2), r"differ between x and y \(30.0, 60.0\)"),
        (spot_frame()[:2], "Too few spots to derive microns per pixel"),
    ],
)
def test_spot_files_that_do_not_fit_are_refused(read, spots, message):
    with pytest.raises(Img2GeneError, match=message):
        read(spots=spots)


@pytest.mark.parametrize("name", ["my section", "a/b", "__x", "..", ""])
def test_names_that_cannot_be_stored_are_refused_before_reading(name):
    with pytest.raises(Img2GeneError, match="section=.* cannot be stored"):
        ig.io.read_legacy_st("nowhere.tsv", PIXELS, section=name)


@pytest.mark.real
def test_her2st_section(data):
    folder = data / "her2st"
    sdata = ig.io.read_legacy_st(
        folder / "ST-cnts" / "C2.tsv.gz",
        folder / "ST-imgs" / "C2.jpg",
        folder / "ST-spotfiles" / "C2_selection.tsv",
        section="C2",
        patient="C",
    )
    table = sdata["table"]
    listed = pd.read_csv(folder / "ST-spotfiles" / "C2_selection.tsv", sep="\t")
    assert table.shape == (187, 15706)
    assert record(sdata)["C2"]["mpp"] == pytest.approx(0.69, abs=0.005)
    assert 2 * sdata["C2_spots"]["radius"].iloc[0] == pytest.approx(145, abs=1)
    np.testing.assert_allclose(places(sdata, "C2").loc["C2_10x21"], [2545.13, 5822.13])
    named = listed.set_index("C2_" + listed.x.astype(str) + "x" + listed.y.astype(str)).loc[table.obs_names]
    np.testing.assert_allclose(places(sdata, "C2"), named[["pixel_x", "pixel_y"]])
    assert set(table.obs["patient"]) == {"C"}
    assert table.obs["library_size"].sum() == table.X.sum() == 1_926_633


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "shape", "image"), [("MOB1", (267, 16573), (1986, 1856)), ("MOB2", (280, 15981), (1980, 1860))]
)
def test_mouse_olfactory_bulb_section(data, name, shape, image):
    sdata = ig.io.read_legacy_st(
        data / "mob_st" / f"{name}_counts.tsv.gz", data / "mob_st" / f"{name}.jpg", section=name
    )
    assert sdata["table"].shape == shape
    assert sdata[f"{name}_image"].shape == (3, *image)
    assert record(sdata)[name]["mpp"] == pytest.approx(3.4, abs=0.1)
    x, y = (float(part) for part in sdata["table"].obs_names[0].removeprefix(f"{name}_").split("x"))
    expected = [(x - 1) / 32 * image[1], (y - 1) / 34 * image[0]]
    np.testing.assert_allclose(places(sdata, name).iloc[0], expected)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"image": np.zeros((9, 9), dtype=np.uint8)}, r"`image` has type uint8 and shape \(9, 9\)"),
        ({"image": np.zeros((9, 9, 3))}, "`image` has type float64"),
        ({"image": np.zeros((0, 9, 3), dtype=np.uint8)}, r"`image` has type uint8 and shape \(0, 9, 3\)"),
        ({"image": "S1.jpg"}, "`image` is a str"),
        ({"table": np.ones((2, 3))}, "`table` is a ndarray; expected an AnnData"),
        ({"table": ad.AnnData(obs=pd.DataFrame(index=["a", "b"]))}, "`table` has no counts"),
        ({"table": ad.AnnData(np.ones((0, 3))), "xy": np.zeros((0, 2))}, "`table` has no counts"),
        ({"xy": [[1, 2], [3]]}, "`xy` holds values that are not numbers"),
        ({"xy": np.zeros((3, 2))}, r"`xy` has shape \(3, 2\); expected \(2, 2\)"),
        ({"xy": np.full((2, 2), np.nan)}, "`xy` holds NaN"),
        ({"mpp": 0.0}, "mpp=0.0"),
        ({"mpp": "0.5"}, "mpp='0.5'"),
        ({"spot_um": float("nan")}, "spot_um=nan"),
        ({"section": "S 1"}, "section='S 1' cannot be stored"),
    ],
)
def test_build_section_refuses_bad_input(change, match):
    parts = {
        "image": np.zeros((9, 9, 3), dtype=np.uint8),
        "xy": np.ones((2, 2)),
        "section": "S1",
        "mpp": 1.0,
        "spot_um": 5.0,
    }
    parts |= {"table": ad.AnnData(np.ones((2, 3), dtype=np.float32)), "patient": None} | change
    with pytest.raises(ig.Img2GeneError, match=match):
        ig.io.build_section(**parts)


def test_build_section_names_all_problems_in_one_error():
    table = ad.AnnData(np.ones((2, 3), dtype=np.float32))
    with pytest.raises(ig.Img2GeneError, match=r"(?s)4 problems.*section='S 1'.*`image` is a str.*`xy` has.*mpp=-1"):
        ig.io.build_section("S1.jpg", np.ones((3, 2)), table, section="S 1", patient=None, mpp=-1, spot_um=5.0)


def test_the_spot_file_of_another_section_is_named_or_refused(read, caplog):
    spots = spot_frame()
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    read(spots=spots)
    # Two of nine spots are shared, and then six.
    moved = spots.assign(x=spots.x.where(spots.index < 2, spots.x + 20))
    with pytest.raises(Img2GeneError, match="2 spots are in both files, of 9 counted and 11 selected spots"):
        read(spots=moved)
    moved = spots.assign(x=spots.x.where(spots.index < 6, spots.x + 20))
    assert read(spots=moved)["table"].n_obs == 6
    assert any("only these are kept" in record.getMessage() for record in caplog.records)


def test_the_frame_keeps_its_last_row_and_column(read):
    names = [f"{x}x{y}" for x in (1, 17, 33) for y in (1, 18, 35)]
    counts = counts_frame().iloc[: len(names)].set_axis(names)
    assert read(counts=counts, image=np.full((640, 640, 3), 200, np.uint8))["table"].n_obs == len(names)


def test_counted_spots_at_one_place_are_refused(read):
    counts = counts_frame()
    counts.index = ["3.1x6.2", "2.9x5.8", *counts.index[2:]]
    with pytest.raises(Img2GeneError, match=r"share a place of the array: \(3, 6\)"):
        read(counts=counts, spots=spot_frame())


def test_spots_outside_of_a_smaller_image_are_left_out_and_named(read, caplog):
    spots = spot_frame()
    columns = np.array([x * 30.0 + 1 for x, _ in SPOTS])
    width = int(columns.max())
    assert 0 < (columns < width).sum() < len(SPOTS)
    assert read(spots=spots, image=PIXELS[:, :width])["table"].n_obs == (columns < width).sum()
    assert any("lie outside the image" in record.getMessage() for record in caplog.records)
    with pytest.raises(Img2GeneError, match="nothing that was measured lies on the image"):
        read(spots=spots, image=PIXELS[:8, :8])
