"""Slide files with lost tiles, and files that were cut: what is lost is named, and everything else is used."""

import logging

import dask.array as da
import numpy as np
import pytest

import img2gene as ig
from img2gene._errors import Img2GeneError
from img2gene._study.images import RGBImage, UnreadablePixelsError, _boxes, open_image
from img2gene._study.windows import stream_windows
from img2gene.io._cut_files import cut_message

tifffile = pytest.importorskip("tifffile")
pytest.importorskip("wsidata")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SIDE, TILE, MPP = 2560, 256, 0.65
RNG = np.random.default_rng(0)
# Stained tissue on all of the picture but for a border of glass.
PIXELS = np.full((SIDE, SIDE, 3), 244, dtype=np.uint8)
PIXELS[200:-200, 200:-200] = np.array([170, 90, 150]) + RNG.integers(-40, 40, (SIDE - 400, SIDE - 400, 3))


def write(path, factors=(1,), compression="jpeg"):
    """An OME-TIFF whose tiles have 256 px, with one level for each factor."""
    metadata = {"axes": "YXS"} | {f"PhysicalSize{axis}": MPP for axis in "XY"}
    with tifffile.TiffWriter(path) as tiff:
        for number, factor in enumerate(factors):
            first = {"subifds": len(factors) - 1, "metadata": metadata} if not number else {"subfiletype": 1}
            options = {"photometric": "rgb", "tile": (TILE, TILE), "compression": compression}
            tiff.write(PIXELS[::factor, ::factor], **options, **first)
    return path


def damage(path, tiles, level=0):
    """Overwrite compressed tiles of a level with zeros."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.series[0].levels[level].keyframe
        places = [(page.dataoffsets[tile], page.databytecounts[tile]) for tile in tiles]
    with path.open("r+b") as file:
        for start, length in places:
            file.seek(start)
            file.write(bytes(length))
    return path


def tiled(path, **arguments):
    sdata = ig.io.read_slide(path, section="S")
    ig.pp.tile_slide(sdata, "S_image", **{"tile_um": 100, "patch_um": 100} | arguments)
    return sdata


def embedding(sdata, **arguments):
    ig.pp.embed_patches(sdata, "color-texture", orientations=1, table_key="slide_tiles", **arguments)
    return np.asarray(sdata["slide_tiles"].obsm["X_color-texture"])


def touching(table, y0, x0, y1, x1):
    boxes = np.asarray(table.obsm["patch_bbox"])
    return (boxes[:, 0] < y1) & (boxes[:, 2] > y0) & (boxes[:, 1] < x1) & (boxes[:, 3] > x0)


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_one_lost_tile_of_a_file_costs_only_the_spots_on_it(tmp_path):
    whole, bad = tiled(write(tmp_path / "whole.ome.tiff")), tiled(damage(write(tmp_path / "bad.ome.tiff"), [35]))
    table = bad["slide_tiles"]
    assert table.obs_names.equals(whole["slide_tiles"].obs_names)
    expected, features = embedding(whole), embedding(bad)
    # Tile 35 is the sixth of the fourth row.
    lost = touching(table, 768, 1280, 1024, 1536)
    np.testing.assert_array_equal(np.isnan(features).any(axis=1), lost)
    assert lost.sum() == 6
    np.testing.assert_array_equal(features[~lost], expected[~lost])
    with pytest.raises(Img2GeneError, match="rows 768 to 1024 and columns 1280 to 1536 cannot be read"):
        embedding(bad, on_error="raise")


def test_one_lost_tile_of_a_small_level_leaves_the_others(tmp_path):
    path = damage(write(tmp_path / "bad.ome.tiff", factors=(1, 4)), [4], level=1)
    # At 2.6 µm per pixel the patches are read from the second level, which is one chunk.
    sdata = tiled(path, resolution_um=2.6)
    lost = np.isnan(embedding(sdata)).any(axis=1)
    boxes = np.asarray(sdata["slide_tiles"].obsm["patch_bbox"]) / 4
    inside = ((boxes[:, :2] >= 257) & (boxes[:, 2:] <= 511)).all(axis=1)
    outside = ((boxes[:, :2] >= 513) | (boxes[:, 2:] <= 255)).any(axis=1)
    assert lost[inside].all() and not lost[outside].any() and outside.sum() > inside.sum() > 0


def test_lost_tiles_are_found_in_a_part_of_the_image_too(tmp_path):
    image = open_image(ig.io.read_slide(damage(write(tmp_path / "bad.ome.tiff"), [35]), section="S"), "S_image")
    part = RGBImage(image.array[::-1, 700:2000, 1200:2100], ["b", "g", "r"], "part")
    pixels = part.whole()
    (boxes,) = part.unreadable.values()
    np.testing.assert_array_equal(boxes, [[68, 80, 324, 336]])
    expected = image.whole()[700:2000, 1200:2100]
    np.testing.assert_array_equal(pixels, expected)
    assert (pixels[68:324, 80:336] == 255).all() and (pixels[:68] < 255).all()


def test_tiles_on_lost_pixels_are_kept_and_named(tmp_path, caplog):
    # There is one scale, of which the lower half is lost.
    path = damage(write(tmp_path / "bad.ome.tiff"), range(50, 100))
    sdata = tiled(path, tile_um=96, patch_um=96)
    table = sdata["slide_tiles"]
    centers = np.asarray(table.obsm["spatial"])
    low = centers[:, 1] > SIDE / 2 + 96 / MPP
    # The grid of the lower half is complete, glass included; that of the upper half leaves out the border.
    n_columns = int(SIDE * MPP // 96)
    assert all(n == n_columns for n in np.unique(centers[low, 1], return_counts=True)[1])
    assert centers[centers[:, 1] < SIDE / 2 - 96 / MPP, 1].min() > 150
    texts = warnings_of(caplog)
    assert any("50 % of the pixels of image `S_image` cannot be read" in text for text in texts)
    n_lost = int(touching(table, SIDE / 2, 0, SIDE, SIDE).sum())
    (text,) = [text for text in texts if "They are kept" in text]
    assert f" of {table.n_obs} tiles" in text and abs(int(text.split()[0]) - n_lost) <= n_columns
    features = embedding(sdata)
    assert np.isnan(features[low]).all() and np.isfinite(features[centers[:, 1] < SIDE / 2 - 96 / MPP]).all()


def test_an_image_without_a_readable_pixel_is_refused(tmp_path):
    path = damage(write(tmp_path / "bad.ome.tiff"), range(100))
    with pytest.raises(Img2GeneError, match="No pixel of image `S_image` can be read"):
        tiled(path)


def test_a_chunk_of_an_image_without_parts_is_lost_whole():
    def block(values, block_info=None):
        if block_info[None]["chunk-location"] == (0, 0, 1):
            raise OSError("cut")
        return values

    array = da.map_blocks(block, da.full((3, 64, 128), 7, chunks=(3, 64, 64), dtype=np.uint8), dtype=np.uint8)
    image = RGBImage(array, ["r", "g", "b"], "image")
    boxes = np.array([[[0, 0, 32, 32]], [[0, 40, 32, 72]], [[0, 96, 32, 128]]])
    (windows,) = stream_windows(image, boxes, 8, skip_unreadable=True)
    assert dict(zip(windows.index.tolist(), windows.unreadable.tolist(), strict=True)) == {0: False, 1: True, 2: True}
    assert image.lost_points(32).tolist() == [[False, False, True, True], [False, False, True, True]]
    with pytest.raises(UnreadablePixelsError, match=r"rows 0 to 64 and columns 64 to 128 .*OSError: cut"):
        image.block(0, 1)


def test_boxes_cover_what_is_lost_and_nothing_else():
    for seed in range(20):
        mask = np.kron(np.random.default_rng(seed).random((3, 4)) < 0.4, np.ones((2, 3), dtype=bool))
        covered = np.zeros(mask.shape, dtype=int)
        for y0, x0, y1, x1 in _boxes(mask):
            covered[y0:y1, x0:x1] += 1
        np.testing.assert_array_equal(covered, mask)


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_a_file_that_was_cut_is_named(tmp_path, share):
    path = write(tmp_path / "cut.ome.tiff", factors=(1, 4, 16))
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(int(share * size))
    with pytest.raises(Img2GeneError, match=rf"was cut: it has {int(share * size):,} bytes.* byte {size:,}\..*again"):
        ig.io.read_slide(path)


def test_what_is_left_of_a_file_that_was_cut_is_read_with_a_warning(tmp_path, caplog):
    path = write(tmp_path / "cut.ome.tiff", factors=(1, 4, 16), compression="deflate")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    sdata = ig.io.read_slide(path, mpp=MPP, section="S")
    (text,) = [text for text in warnings_of(caplog) if "was cut" in text]
    assert "1 level(s) are read" in text
    image = open_image(sdata, "S_image")
    np.testing.assert_array_equal(image.readable_block(0, 0), PIXELS[:1024, :1024])
    image.readable_block(2, 2)
    assert image.lost(np.array([[0, 0, 9, 9], [2100, 2100, 2109, 2109]])).tolist() == [False, True]


@pytest.mark.parametrize(("bigtiff", "byteorder"), [(False, "<"), (False, ">"), (True, "<"), (True, ">")])
def test_only_files_that_were_cut_are_said_to_be(tmp_path, bigtiff, byteorder):
    path = tmp_path / "whole.tiff"
    with tifffile.TiffWriter(path, bigtiff=bigtiff, byteorder=byteorder) as tiff:
        tiff.write(PIXELS[:300, :300], tile=(64, 64), photometric="rgb", description="x" * 400)
        tiff.write(PIXELS[:100, :100], photometric="rgb", rowsperstrip=9)
    assert cut_message(path) == ""
    content = path.read_bytes()
    for n_bytes in (len(content) - 1, len(content) // 2, 400, 12):
        path.write_bytes(content[:n_bytes])
        assert f"was cut: it has {n_bytes:,} bytes" in cut_message(path)
    path.write_bytes(b"not a picture")
    assert cut_message(path) == "" and cut_message(tmp_path / "none.tiff") == ""


def test_patches_of_a_damaged_slide_are_drawn_with_lost_pixels_white_and_stain_is_refused_in_words(tmp_path, caplog):
    whole, bad = tiled(write(tmp_path / "whole.ome.tiff")), tiled(damage(write(tmp_path / "bad.ome.tiff"), [35]))
    # The second spot lies within the lost tile.
    index = [0, int(np.flatnonzero(touching(bad["slide_tiles"], 768, 1280, 1024, 1536))[-1])]
    caplog.clear()
    expected, found = (ig.get.patches(sdata, index, table_key="slide_tiles") for sdata in (whole, bad))
    np.testing.assert_array_equal(found[0], expected[0])
    assert (found[1] == 255).any() and not np.array_equal(found[1], expected[1])
    assert any("1 patches have pixels that cannot be read, which are white" in text for text in warnings_of(caplog))
    with pytest.raises(Img2GeneError, match="Image `S_image` has pixels that cannot be read"):
        ig.pp.normalize_stain(bad, "S_image")
    assert list(bad.images) == ["S_image"]
