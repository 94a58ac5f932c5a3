"""Windows cut out of large images, and the conversion of pixels to 8-bit RGB."""

import collections
import itertools
import re
import threading

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from spatialdata import SpatialData
from spatialdata.models import Image2DModel

import img2gene as ig
from img2gene._errors import Img2GeneError
from img2gene._study.colours import to_rgb
from img2gene._study.images import RGBImage, open_image
from img2gene._study.windows import Shrinking, prefetch, stream_windows


class CountedArray:
    """An array that notes which part was read how often."""

    def __init__(self, values):
        self.values, self.shape, self.dtype, self.ndim = values, values.shape, values.dtype, values.ndim
        self.reads = collections.Counter()

    def __getitem__(self, key):
        self.reads[tuple((part.start, part.stop) for part in key[1:])] += 1
        return self.values[key]


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def opened(pixels, chunks):
    array = da.from_array(np.moveaxis(pixels, -1, 0), chunks=((3,), *chunks))
    return RGBImage(array, ["r", "g", "b"], "image")


def expected_windows(pixels, boxes):
    """Each window by plain slicing of an image padded with white."""
    pad = 200
    padded = np.pad(pixels, ((pad, pad), (pad, pad), (0, 0)), constant_values=255)
    return [padded[y0 + pad : y1 + pad, x0 + pad : x1 + pad] for y0, x0, y1, x1 in boxes]


def streamed(image, boxes, batch_size, num_workers):
    """Windows of every field in the order of ``boxes``; each spot must come exactly once."""
    pixels_of = {}
    for windows in stream_windows(image, boxes, batch_size, num_workers):
        assert len(windows.index) <= batch_size
        for place, spot in enumerate(windows.index):
            assert spot not in pixels_of
            pixels_of[spot] = [field[place] for field in windows.fields]
    assert sorted(pixels_of) == list(range(len(boxes)))
    return [pixels_of[spot] for spot in range(len(boxes))]


@st.composite
def partitions(draw, maximum=30):
    """Chunk lengths of one axis."""
    return tuple(draw(st.lists(st.integers(1, maximum), min_size=1, max_size=5)))


@st.composite
def cuts(draw):
    chunks = (draw(partitions()), draw(partitions()))
    sides = draw(st.lists(st.integers(1, 25), min_size=1, max_size=3))
    n = draw(st.integers(1, 12))
    places = draw(st.lists(st.tuples(st.integers(-30, 120), st.integers(-30, 120)), min_size=n, max_size=n))
    boxes = np.array([[[y, x, y + side, x + side] for side in sides] for y, x in places])
    return chunks, boxes, draw(st.integers(1, 13)), draw(st.integers(0, 3))


@given(cuts())
@settings(deadline=None, max_examples=60)
def test_windows_equal_slices_of_the_padded_image(case):
    chunks, boxes, batch_size, num_workers = case
    pixels = noise(sum(chunks[0]), sum(chunks[1]))
    found = streamed(opened(pixels, chunks), boxes, batch_size, num_workers)
    for field in range(boxes.shape[1]):
        for spot, window in enumerate(expected_windows(pixels, boxes[:, field])):
            np.testing.assert_array_equal(found[spot][field], window)


def test_large_windows_are_reduced_as_the_encoder_reduces_them_and_small_ones_stay():
    from img2gene.encoders.base import resize

    pixels = noise(90, 70)
    image = opened(pixels, ((40, 50), (33, 37)))
    corners = np.array([[-9, 5], [20, 20], [60, 40]])
    boxes = np.stack([np.hstack([corners, corners + side]) for side in (12, 48)], axis=1)
    (windows,) = stream_windows(image, boxes, 8, shrinking=[Shrinking(resized=16), Shrinking(resized=16)])
    small, large = [field[np.argsort(windows.index)] for field in windows.fields]
    np.testing.assert_array_equal(small, expected_windows(pixels, boxes[:, 0]))
    whole = np.stack(expected_windows(pixels, boxes[:, 1]))
    np.testing.assert_array_equal(large, resize(whole, 16).permute(0, 2, 3, 1).numpy())


def test_windows_at_one_resolution_are_averaged_over_areas_before_the_encoder_reduces_them():
    from img2gene.encoders.base import resize

    pixels = noise(64, 64)
    boxes = np.array([[[8, 8, 40, 40]]])
    (windows,) = stream_windows(opened(pixels, ((64,), (64,))), boxes, 8, shrinking=[Shrinking(16, 8)])
    means = np.floor(pixels[8:40, 8:40].reshape(16, 2, 16, 2, 3).mean(axis=(1, 3)) + 0.5).astype(np.uint8)
    expected = resize(means[None], 8)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(windows.fields[0][0].astype(int), expected.astype(int), atol=1)
    assert Shrinking(16, 32).side(64) == 16
    assert Shrinking().side(64) == 64


@given(cuts())
@settings(deadline=None, max_examples=40)
def test_each_touched_chunk_is_decoded_exactly_once_and_no_other(case):
    chunks, boxes, batch_size, num_workers = case
    counted = CountedArray(np.moveaxis(noise(sum(chunks[0]), sum(chunks[1])), -1, 0))
    array = da.from_array(counted, chunks=((3,), *chunks), asarray=False, meta=np.empty((0, 0, 0), np.uint8))
    streamed(RGBImage(array, ["r", "g", "b"], "image"), boxes, batch_size, num_workers)
    assert set(counted.reads.values()) <= {1}
    edges = [np.concatenate([[0], np.cumsum(lengths)]) for lengths in chunks]
    blocks = itertools.product(itertools.pairwise(edges[0]), itertools.pairwise(edges[1]))
    # All fields of a spot are cut from the one rectangle that holds them.
    low, high = boxes[:, :, :2].min(axis=1), boxes[:, :, 2:].max(axis=1)
    touched = {
        ((int(t), int(b)), (int(l), int(r)))
        for (t, b), (l, r) in blocks
        if ((low[:, 0] < b) & (high[:, 0] > t) & (low[:, 1] < r) & (high[:, 1] > l)).any()
    }
    assert set(counted.reads) == touched


def test_no_boxes_yield_nothing():
    image = opened(noise(10, 10), ((10,), (10,)))
    assert list(stream_windows(image, np.empty((0, 1, 4), dtype=int), 4)) == []


def test_a_window_outside_the_image_is_white_without_reading():
    counted = CountedArray(np.zeros((3, 8, 8), np.uint8))
    array = da.from_array(counted, chunks=(3, 4, 4), asarray=False, meta=np.empty((0, 0, 0), np.uint8))
    found = streamed(RGBImage(array, [0, 1, 2], "image"), np.array([[[20, 20, 25, 25]]]), 1, 1)
    assert (found[0][0] == 255).all()
    assert not counted.reads


class CountingStore(zarr.storage.WrapperStore):
    """A Zarr store that counts how often each key is read."""

    def __init__(self, store):
        super().__init__(store)
        self.reads = collections.Counter()

    async def get(self, key, *args, **kwargs):
        self.reads[key] += 1
        return await super().get(key, *args, **kwargs)


def test_stored_chunks_are_read_once_by_a_whole_embedding(tmp_path, make_section):
    built = make_section("S1", "P1")
    ig.pp.extract_patches(built, patch_um=(60, 150), patch_px=32)
    ig.pp.embed_patches(built, "tiny")
    zarr.create_array(tmp_path / "image.zarr", data=built["S1_image"].values, chunks=(3, 48, 48))
    store = CountingStore(zarr.storage.LocalStore(tmp_path / "image.zarr", read_only=True))
    pixels = da.from_zarr(zarr.open_array(store, mode="r"))
    assert pixels.chunks[1:] == ((48, 48, 48, 16),) * 2
    system = {"S1": built["S1_spots"].attrs["transform"]["S1"]}
    image = Image2DModel.parse(pixels, dims=("c", "y", "x"), transformations=system)
    table = built["table"].copy()
    del table.obsm["X_tiny"]
    sdata = SpatialData(images={"S1_image": image}, shapes=dict(built.shapes), tables={"table": table})
    store.reads.clear()
    ig.pp.embed_patches(sdata, "tiny", batch_size=5, num_workers=2)
    chunks = {key: n for key, n in store.reads.items() if re.fullmatch(r"c/0/\d+/\d+", key)}
    assert len(chunks) == 16
    assert set(chunks.values()) == {1}
    np.testing.assert_allclose(table.obsm["X_tiny"], built["table"].obsm["X_tiny"], rtol=1e-6)


@given(partitions(), partitions(), st.integers(1, 40))
@settings(deadline=None, max_examples=40)
def test_thumbnail_is_every_nth_pixel_whatever_the_chunks(rows, columns, step):
    pixels = noise(sum(rows), sum(columns))
    np.testing.assert_array_equal(opened(pixels, (rows, columns)).thumbnail(step), pixels[::step, ::step])


def test_uint8_rgb_is_unchanged():
    pixels = noise(5, 4)
    np.testing.assert_array_equal(to_rgb(pixels, "x"), pixels)


def test_rgba_is_laid_over_white():
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 255, 128]]], dtype=np.uint8)
    # 0 · 128/255 + 255 · 127/255 = 127; 100 → 177.2; 255 stays
    np.testing.assert_array_equal(to_rgb(pixels, "x"), [[[10, 20, 30], [255, 255, 255], [127, 177, 255]]])


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([0.0, 0.2, 1.0], np.float32, [0, 51, 255]),
        ([0.0, 0.2, 1.0], np.float64, [0, 51, 255]),
        ([0, 32896, 65535], np.uint16, [0, 128, 255]),
        ([0, 17, 255], np.uint16, [0, 17, 255]),
        ([0, 17, 255], np.int64, [0, 17, 255]),
    ],
)
def test_certain_scales_are_converted(values, dtype, expected):
    found = to_rgb(np.array([[values]], dtype=dtype), "x")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, [[expected]])


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0.0, 100.0, 255.0], np.float32),
        ([-0.5, 0.0, 0.5], np.float32),
        ([0.0, np.nan, 1.0], np.float32),
        ([0, 5, 4095], np.uint16),
        ([-1, 5, 200], np.int16),
        ([0, 5, 70000], np.int64),
    ],
)
def test_uncertain_scales_are_refused(values, dtype):
    with pytest.raises(Img2GeneError, match=f"slide: {np.dtype(dtype)} pixels .* scale is not certain"):
        to_rgb(np.array([[values]], dtype=dtype), "slide")


def test_grey_and_multichannel_pixels_are_refused():
    with pytest.raises(Img2GeneError, match=r"slide: .* got shape \(4, 4\) \(grey images are refused\)"):
        to_rgb(np.zeros((4, 4), np.uint8), "slide")
    for channels in (1, 2, 5):
        with pytest.raises(Img2GeneError, match=rf"slide: {channels} channel\(s\); H&E images have 3"):
            to_rgb(np.zeros((4, 4, channels), np.uint8), "slide")


def test_fluorescence_channels_are_refused_by_name():
    array = da.zeros((3, 4, 4), dtype=np.uint8)
    with pytest.raises(Img2GeneError, match="image `if`: channels are DAPI, CD3, CD8, not RGB"):
        RGBImage(array, ["DAPI", "CD3", "CD8"], "image `if`")


@pytest.mark.parametrize("names", list(itertools.permutations("rgb")))
def test_channels_are_taken_by_name_in_any_order(names):
    pixels = noise(9, 7)
    stored = np.stack([pixels[..., "rgb".index(name)] for name in names])
    for written in (
        names,
        [name.upper() for name in names],
        [{"r": "Red", "g": "green", "b": "BLUE"}[n] for n in names],
    ):
        image = RGBImage(da.from_array(stored, chunks=(1, 4, 7)), list(written), "image")
        np.testing.assert_array_equal(image.thumbnail(1), pixels)


def test_numbered_channels_keep_the_order_of_their_numbers():
    pixels = noise(9, 7)
    stored = np.moveaxis(pixels, -1, 0)
    for names, values in (
        ([0, 1, 2], stored),
        ([1, 2, 3], stored),
        ([2, 1, 0], stored[::-1]),
        (["0", "1", "2"], stored),
    ):
        np.testing.assert_array_equal(RGBImage(da.from_array(values), names, "image").thumbnail(1), pixels)


@pytest.mark.parametrize(
    "names",
    [
        ["r", "g", "g"],
        ["r", "g", "a"],
        ["r", "g", "DAPI"],
        ["r", "g", 2],
        [0, 2, 5],
        [0, 0, 1],
        ["c", "m", "y", "k"],
        ["r", "g", "b", "DAPI"],
        [None, "g", "b"],
    ],
)
def test_channels_that_are_not_red_green_and_blue_are_refused(names):
    with pytest.raises(
        Img2GeneError, match=r"image: channels are .*, not RGB.*set_channel_names\(image, \['r', 'g', 'b'\]\)"
    ):
        RGBImage(da.zeros((len(names), 4, 4), dtype=np.uint8), names, "image")


def test_alpha_is_found_by_its_name_in_any_place():
    pixels = np.concatenate([noise(3, 3), np.full((3, 3, 1), 128, np.uint8)], axis=2)
    stored = np.stack([pixels[..., 3], pixels[..., 2], pixels[..., 1], pixels[..., 0]])
    image = RGBImage(da.from_array(stored), ["alpha", "b", "g", "r"], "image")
    np.testing.assert_array_equal(image.thumbnail(1), to_rgb(pixels, "image"))


@pytest.mark.parametrize(("dtype", "opaque"), [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1)])
def test_a_fourth_channel_without_a_name_must_be_opaque(dtype, opaque):
    stored = np.full((4, 4, 4), opaque, dtype=dtype)
    stored[:3, 0] = opaque / 2
    assert RGBImage(da.from_array(stored), [0, 1, 2, 3], "image").thumbnail(1)[1:].min() == 255
    stored[3, 0] = 0
    with pytest.raises(Img2GeneError, match=r"the fourth channel has no name .*alpha, black \(CMYK\) or a stain"):
        RGBImage(da.from_array(stored), [0, 1, 2, 3], "image").thumbnail(1)
    RGBImage(da.from_array(stored), list("rgba"), "image").thumbnail(1)


@pytest.mark.parametrize(
    "pixels", [np.zeros((3, 4, 4), complex), np.zeros((3, 4, 4), bool), np.zeros((3, 0, 4), np.uint8)]
)
def test_pixels_that_are_no_intensities_are_refused(pixels):
    with pytest.raises(Img2GeneError, match="image: .* pixels, . × 4; expected numbers"):
        RGBImage(da.from_array(pixels), ["r", "g", "b"], "image")


def test_a_volume_is_refused():
    from spatialdata.models import Image3DModel

    volume = Image3DModel.parse(np.zeros((3, 2, 8, 8), np.uint8), dims=("c", "z", "y", "x"))
    with pytest.raises(Img2GeneError, match="axes c, z, y, x; expected c, y, x"):
        open_image(SpatialData(images={"he": volume}), "he")


def test_windows_of_large_fields_are_read_in_small_batches(make_section, monkeypatch):
    from img2gene._study import patches
    from img2gene._study.study import Study

    sdata = make_section("S1", "P1")
    ig.pp.extract_patches(sdata, patch_um=(60, 100), patch_px=32)
    # Two windows of 12 and 20 px take 1,632 bytes.
    monkeypatch.setattr(patches, "_BATCH_BYTES", 5000)
    assert {len(rows) for rows, _ in patches.stream_patches(Study.of(sdata), 64, 0)} == {3, 1}


def test_blocks_of_one_image_share_one_scale():
    # The left chunk alone would look like 8-bit values, the right one tells that the image has 16 bits.
    array = da.from_array(np.stack([np.array([[257, 200, 65535, 32896]], np.uint16)] * 3), chunks=(3, 1, 2))
    image = RGBImage(array, ["r", "g", "b"], "image")
    np.testing.assert_array_equal(image.block(0, 0)[0, :, 0], [1, 1])
    np.testing.assert_array_equal(image.block(0, 1)[0, :, 0], [255, 128])


def test_axes_in_another_order_and_several_scales_read_the_same_pixels():
    pixels = noise(64, 48)
    image = Image2DModel.parse(pixels, dims=("y", "x", "c"), scale_factors=[2], c_coords=["r", "g", "b"])
    found = open_image(SpatialData(images={"he": image}), "he")
    assert (found.height, found.width) == (64, 48)
    np.testing.assert_array_equal(found.thumbnail(1), pixels)


def producers():
    return {thread for thread in threading.enumerate() if "produce" in thread.name}


def test_prefetch_keeps_the_order():
    assert list(prefetch(iter(range(50)), depth=3)) == list(range(50))


def test_prefetch_passes_items_then_the_exception_on():
    def failing():
        yield 1
        raise OSError("disk gone")

    items = prefetch(failing())
    assert next(items) == 1
    with pytest.raises(OSError, match="disk gone"):
        next(items)


def test_prefetch_runs_at_most_its_depth_ahead_and_stops_its_thread_with_its_consumer():
    made, before = [], producers()

    def endless():
        for number in itertools.count():
            made.append(number)
            yield number

    items = prefetch(endless(), depth=2)
    assert next(items) == 0
    (thread,) = producers() - before
    items.close()
    thread.join(timeout=30)
    assert not thread.is_alive()
    # the one consumed, two waiting, one in hand, and one that took the place of what was consumed
    assert len(made) <= 5


def test_an_unreadable_chunk_stops_the_embedding_and_leaves_the_table_alone(make_section, snapshot, monkeypatch):
    sdata = make_section("S1", "P1")
    ig.pp.extract_patches(sdata, patch_um=60, patch_px=32)
    before = snapshot(sdata["table"])
    failing = lambda self, row, column: (_ for _ in ()).throw(OSError("truncated tile"))
    monkeypatch.setattr(RGBImage, "readable_block", failing)
    for workers in (0, 2):
        with pytest.raises(OSError, match="truncated tile"):
            ig.pp.embed_patches(sdata, "tiny", num_workers=workers)
    assert snapshot(sdata["table"]) == before
