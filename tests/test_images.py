import struct
import tracemalloc
import zlib

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageChops, ImageFilter

from pipeline.data.image_names import OVERLAY_COMMENT
from pipeline.data.images import (
    IMAGES_FILE,
    INVENTORY_FILE,
    QUARANTINE_FILE,
    LabelledImages,
    PackedImages,
    UnreadableImageError,
    batches_by_size,
    decode,
    image_statistics,
    open_image,
    read_quarantine,
    stored_size,
    thumbnail,
    to_pixels,
)

# What a camera does to the picture that Orientation says how to undo.
TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.fixture(scope="module")
def photo():
    """An upright RGB image of 40 rows and 56 columns that no mirroring or turn leaves as it is."""
    rows, columns = np.mgrid[0:40, 0:56]
    return np.stack([rows * 6, columns * 4, (rows + columns) * 2], axis=2).astype(np.uint8)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "BMP"])
def test_a_lossless_image_comes_back_as_it_was(photo, encode, file_format):
    pixels = decode(encode(photo, file_format))
    np.testing.assert_array_equal(pixels, photo, strict=True)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", TURNS)
def test_a_turned_image_is_decoded_upright_and_its_header_agrees(photo, encode, file_format, orientation):
    upright = Image.fromarray(photo)
    stored = upright if TURNS[orientation] is None else upright.transpose(TURNS[orientation])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = encode(stored, file_format, exif=exif)
    pixels = decode(content)
    assert pixels.shape == photo.shape
    assert np.abs(pixels.astype(int) - photo).mean() < 4  # grey levels; mirrored or turned it is above 40
    assert stored_size(content) == (40, 56)


def test_other_orientations_would_be_distinguished(photo):
    turned = [np.asarray(Image.fromarray(photo).transpose(TURNS[number])) for number in (2, 3, 4)]
    assert min(np.abs(pixels.astype(int) - photo).mean() for pixels in turned) > 40


@pytest.mark.parametrize(
    ("mode", "file_format", "expected"),
    [
        ("RGB", "PNG", (204, 102, 51)),
        ("L", "PNG", (127, 127, 127)),  # 0.299 * 204 + 0.587 * 102 + 0.114 * 51
        ("LA", "PNG", (127, 127, 127)),
        ("P", "PNG", (204, 102, 51)),
        ("RGBA", "PNG", (204, 102, 51)),
        ("PA", "TIFF", (204, 102, 51)),
        ("CMYK", "TIFF", (204, 102, 51)),
        ("YCbCr", "TIFF", (204, 102, 51)),
    ],
)
def test_every_mode_becomes_rgb(encode, mode, file_format, expected):
    image = Image.new("RGB", (56, 40), (204, 102, 51)).convert(mode)
    content = encode(image, file_format)
    assert open_image(content).mode == mode
    pixels = decode(content)
    assert (pixels.shape, pixels.dtype) == ((40, 56, 3), np.uint8)
    np.testing.assert_allclose(pixels.astype(int), np.broadcast_to(expected, (40, 56, 3)), atol=2)  # by rounding


def test_black_and_white_becomes_rgb(encode):
    image = Image.new("1", (56, 40), 1)
    image.paste(0, (0, 0, 28, 40))
    pixels = decode(encode(image, "PNG"))
    assert (pixels[:, :28] == 0).all()
    assert (pixels[:, 28:] == 255).all()


def test_a_cmyk_photo_becomes_rgb(photo, encode):
    pixels = decode(encode(Image.fromarray(photo).convert("CMYK")))
    assert np.abs(pixels.astype(int) - photo).mean() < 4


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("byte_order", ["<u2", ">u2"])
def test_grey_of_16_bits_keeps_its_shades(encode, file_format, byte_order):
    grey = np.arange(40 * 56, dtype=byte_order).reshape(40, 56) * 29  # 0..64931
    pixels = decode(encode(grey, file_format))
    np.testing.assert_array_equal(pixels, np.repeat((grey // 256)[..., None], 3, axis=2))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("byte_order", ["<u2", ">u2"])
@pytest.mark.parametrize("bits", [10, 12, 14])
def test_grey_of_fewer_bits_in_a_file_of_16_is_as_bright_as_it_was(draw_tile, encode, file_format, byte_order, bits):
    tile = draw_tile(0, cracked=True)[..., 0]
    grey = tile.astype(byte_order) << (bits - 8)  # its brightest pixel is above half of white
    np.testing.assert_array_equal(decode(encode(grey, file_format))[..., 0], tile)


@pytest.mark.parametrize("tag", [281, 341])  # MaxSampleValue, SMaxSampleValue
@pytest.mark.parametrize(("stated", "bits"), [(4095, 12), (3000, 12), (16383, 14), (65535, 10), (100, 10)])
def test_a_dark_tile_is_as_dark_as_the_maximum_that_its_tiff_states_makes_it(encode, tag, stated, bits):
    grey = np.arange(40 * 56, dtype=np.uint16).reshape(40, 56) % 1000
    pixels = decode(encode(grey, "TIFF", tiffinfo={tag: stated}))
    np.testing.assert_array_equal(pixels[..., 0], grey >> (bits - 8))


def tiff(samples, bits, photometric, **tags):
    """Return a plain TIFF of samples that are packed already: bytes of (height, width) px."""
    content, (height, width, n_samples) = samples
    entries = {256: width, 257: height, 259: 1, 262: photometric, 273: 8, 277: n_samples, 278: height}
    entries |= {279: len(content)} | {int(tag): value for tag, value in tags.items()}
    start = 8 + len(content)
    head = b"II*\0" + struct.pack("<I", start + 2 * n_samples) + content + struct.pack("<H", bits) * n_samples
    rows = {tag: struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items()}
    inline = struct.pack("<HHIHH", 258, 3, 1, bits, 0)
    rows[258] = inline if n_samples == 1 else struct.pack("<HHII", 258, 3, n_samples, start)
    return head + struct.pack("<H", len(rows)) + b"".join(row for _, row in sorted(rows.items())) + bytes(4)


def test_a_tiff_of_12_packed_bits_is_read():
    grey = np.arange(40 * 56).reshape(40, 56) % 900
    first, second = grey[:, ::2], grey[:, 1::2]
    packed = np.stack([first >> 4, ((first & 15) << 4) | (second >> 8), second & 255], axis=-1).astype(np.uint8)
    pixels = decode(tiff((packed.tobytes(), (40, 56, 1)), 12, photometric=1))
    np.testing.assert_array_equal(pixels[..., 0], grey >> 4)


@pytest.mark.parametrize(("dtype", "bits", "white"), [(np.uint8, 8, 255), ("<u2", 16, 65535), ("<u2", 16, 4095)])
def test_grey_whose_zero_is_white_is_inverted(draw_tile, dtype, bits, white):
    tile = draw_tile(0, cracked=True)[..., 0]
    stored = ((255 - tile.astype(int)) * (white + 1) // 256).astype(dtype)
    pixels = decode(tiff((stored.tobytes(), (64, 64, 1)), bits, photometric=0))
    assert np.abs(pixels[..., 0].astype(int) - tile).max() <= 1


def png_of_16_bits(pixels):
    """Return pixels, uint16 (height, width, 2 or 3 or 4), as a PNG of 16 bits: grey and alpha, RGB or RGBA."""
    height, width, n_bands = pixels.shape

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[n_bands], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("kind", ["RGB TIFF", "RGB PNG", "RGBA PNG", "LA PNG"])
def test_colours_of_16_bits_are_read_and_refused_where_they_use_fewer_as_they_would_be_black(photo, kind):
    def encoded(pixels):
        if kind == "RGB TIFF":
            return tiff((pixels.astype("<u2").tobytes(), pixels.shape), 16, photometric=2)
        opaque = np.full((40, 56, 1), 65535, np.uint16)
        bands = {"RGB PNG": [pixels], "RGBA PNG": [pixels, opaque], "LA PNG": [pixels[..., :1], opaque]}[kind]
        return png_of_16_bits(np.concatenate(bands, axis=2))

    wide = photo.astype(np.uint16) * 257
    expected = photo[..., :1].repeat(3, axis=2) if kind == "LA PNG" else photo
    np.testing.assert_array_equal(decode(encoded(wide)), expected)
    reason = "its colours use few of 16 bits, and would be read as nearly black. Save it with 8 bits"
    for bits in (10, 12, 14):
        with pytest.raises(UnreadableImageError, match=reason):
            decode(encoded(wide >> (16 - bits)))


def test_a_signed_tiff_is_refused_because_black_and_white_are_unknown(photo):
    content = tiff((photo[..., 0].astype("<i2").tobytes(), (40, 56, 1)), 16, photometric=1, **{"339": 2})
    with pytest.raises(UnreadableImageError, match="have a sign or 32 bits, so that the values of black and white are"):
        decode(content)


def test_transparent_pixels_of_a_palette_keep_their_colour(photo, encode):
    image = Image.fromarray(photo).quantize(256)
    pixels = decode(encode(image, "PNG", transparency=bytes(128) + b"\xff" * 128))
    np.testing.assert_array_equal(pixels, np.asarray(image.convert("RGB")))


def test_inks_of_a_jpeg_without_the_mark_of_adobe_are_not_inverted(photo, encode):
    cmyk = Image.fromarray(photo).convert("CMYK")
    content = encode(ImageChops.invert(cmyk))  # Pillow inverts what it writes, and marks it as Adobe's
    start = content.index(b"\xff\xee")
    length = int.from_bytes(content[start + 2 : start + 4], "big")
    assert content[start + 4 : start + 9] == b"Adobe"
    pixels = decode(content[:start] + content[start + 2 + length :])
    assert np.abs(pixels.astype(int) - photo).mean() < 4


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(20), "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(20), "HEIC"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom", "raw"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    ],
)
@pytest.mark.parametrize("read", [decode, stored_size])
def test_a_picture_of_a_kind_that_is_not_read_is_known_by_its_content(content, kind, read):
    with pytest.raises(UnreadableImageError, match=f"^a {kind} picture, which is not read. (Convert|Export) it"):
        read(content)


@pytest.mark.parametrize("kind", ["GIF", "AVIF"])
def test_a_picture_that_pillow_could_read_is_not_read_either(photo, encode, kind):
    with pytest.raises(UnreadableImageError, match=f"^a {kind} picture, which is not read. Convert it to JPEG or PNG$"):
        decode(encode(photo, kind))


@pytest.mark.parametrize("tags", [{"254": 1}, {"50706": 0x0401}])  # NewSubfileType: a preview; DNGVersion
def test_the_preview_in_a_raw_photo_is_not_taken_for_the_photo(photo, tags):
    content = tiff((photo.tobytes(), photo.shape), 8, photometric=2, **tags)
    with pytest.raises(UnreadableImageError, match=r"^a raw picture, which is not read\. Export it as JPEG"):
        decode(content)


def test_an_overlay_of_cracks_map_is_no_photo_whatever_its_name(photo, encode):
    with pytest.raises(UnreadableImageError, match=r"^a picture that `cracks map` has drawn, not a photo$"):
        decode(encode(photo, comment=OVERLAY_COMMENT))
    assert decode(encode(photo, comment=b"a bridge")).shape == photo.shape


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_a_known_range_are_refused(encode, dtype):
    content = encode(np.linspace(0, 1, 40 * 56).reshape(40, 56).astype(dtype), "TIFF")
    with pytest.raises(UnreadableImageError, match="32 bits, so that the values of black and white are unknown"):
        decode(content)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_truncated_file_is_unreadable(photo, encode, file_format):
    content = encode(photo, file_format)
    with pytest.raises(UnreadableImageError, match=r".+"):
        decode(content[: len(content) * 3 // 4])


@pytest.mark.parametrize("read", [open_image, decode])
def test_a_truncated_jpeg_is_unreadable_with_a_reason(photo, encode, read):
    content = encode(photo)
    with pytest.raises(UnreadableImageError, match="image file is truncated"):
        read(content[: len(content) * 3 // 4])


@pytest.mark.parametrize("content", [b"", b"This is a text, not an image.\n", b"\xff\xd8\xff"])
@pytest.mark.parametrize("read", [decode, stored_size])
def test_bytes_that_are_no_image_are_unreadable(content, read):
    with pytest.raises(UnreadableImageError, match=r"^not an image$"):
        read(content)


@pytest.mark.parametrize("read", [decode, stored_size])
def test_an_image_above_the_limit_is_unreadable_by_its_header_and_the_reason_is_in_plain_words(encode, read):
    content = encode(np.zeros((1, 1, 3), np.uint8), "BMP")
    large = content[:18] + struct.pack("<ii", 20_000, 10_001) + content[26:]
    with pytest.raises(UnreadableImageError, match=r"^20000 x 10001 px is more than 200 megapixels\. Divide it$"):
        read(large)


def test_a_photo_of_108_megapixels_is_read_where_the_limit_allows_it(encode):
    content = encode(Image.new("L", (12000, 9000), 128), quality=30)
    assert open_image(content).size == (12000, 9000)
    assert stored_size(content) == (9000, 12000)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
def test_the_pixels_of_a_large_photo_are_not_in_memory_several_times(mode):
    image = Image.new(mode, (2000, 3000))
    tracemalloc.start()
    pixels = to_pixels(image)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * pixels.nbytes


def test_running_out_of_memory_is_not_the_fault_of_the_image(monkeypatch):
    def fail(image, mode):
        raise MemoryError("no memory")

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(MemoryError, match="no memory"):
        to_pixels(Image.new("L", (8, 8)))


def test_a_reason_is_never_empty(monkeypatch):
    def fail(image, mode):
        raise EOFError

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(UnreadableImageError, match=r"^EOFError$"):
        to_pixels(Image.new("L", (8, 8)))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_damaged_bytes_give_an_image_or_a_reason_and_nothing_else(photo, encode, file_format):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    content = encode(photo, file_format, exif=exif)
    rng = np.random.default_rng(0)
    n_unreadable = 0
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(int(rng.choice([1, 5, 20]))):
            damaged[rng.integers(min(len(damaged), 600))] = int(rng.integers(256))
        for read in (decode, stored_size):
            try:
                read(bytes(damaged))
            except UnreadableImageError:
                n_unreadable += 1
    assert n_unreadable > 0


def test_broken_exif_data_make_an_image_unreadable(photo, encode):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    content = encode(photo, "WEBP", exif=exif)
    with pytest.raises(UnreadableImageError, match="not a TIFF file"):
        decode(content.replace(b"MM\x00*", b"MM\x00@"))


def test_a_thumbnail_is_the_mean_of_each_area(photo):
    pixels = np.zeros((128, 192, 3), np.uint8)  # areas of 2 x 3 px
    pixels[0:2, 0:3] = 60
    pixels[0, 3:6] = 200
    small = thumbnail(pixels)
    assert (small.shape, small.dtype) == ((64, 64), np.uint8)
    assert (small[0, 0], small[0, 1], small[0, 2]) == (60, 100, 0)
    assert small.sum() == 160


def test_a_thumbnail_weighs_colours_as_the_eye_does():
    colours = np.zeros((64, 64, 3), np.uint8)
    colours[0, :3] = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert thumbnail(colours)[0, :3].tolist() == [76, 150, 29]


def test_brightness_and_contrast_are_the_mean_and_the_deviation_of_the_grey_levels():
    pixels = np.zeros((48, 48, 3), np.uint8)
    pixels[:, :24] = 200
    seen = image_statistics(pixels)
    assert (seen["brightness"], seen["contrast"]) == (100, 100)


def test_dark_and_bright_shares_count_the_levels_up_to_4_and_from_251():
    pixels = np.zeros((1, 8, 3), np.uint8)
    pixels[0] = np.array([0, 4, 5, 128, 250, 251, 254, 255])[:, None]
    seen = image_statistics(pixels)
    assert (seen["dark_share"], seen["bright_share"]) == (2 / 8, 3 / 8)


def test_sharpness_is_the_variance_of_the_laplacian_of_a_hand_worked_example():
    pixels = np.full((5, 3, 3), 10, np.uint8)
    pixels[2, 1] = 20  # the Laplacian within the border: 10, -40, 10
    assert image_statistics(pixels)["sharpness"] == pytest.approx((10**2 + 40**2 + 10**2) / 3 - (-20 / 3) ** 2)


def test_blur_reduces_sharpness(draw_tile):
    tile = draw_tile(0, cracked=True)
    blurred = np.asarray(Image.fromarray(tile).filter(ImageFilter.GaussianBlur(2)))
    assert image_statistics(blurred)["sharpness"] < 0.2 * image_statistics(tile)["sharpness"]


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (2, 2), (2, 5), (5, 2)])
def test_an_image_too_small_for_a_laplacian_has_no_sharpness(shape):
    assert image_statistics(np.full((*shape, 3), 77, np.uint8)) == {
        "brightness": pytest.approx(77),
        "contrast": pytest.approx(0, abs=1e-5),
        "sharpness": 0,
        "dark_share": 0,
        "bright_share": 0,
    }


def test_the_quarantine_keeps_a_file_that_is_named_na(tmp_path):
    (tmp_path / QUARANTINE_FILE).write_text("batch,path,reason,is_image\n,NA,not an image,False\n")
    # the table is of an earlier version, without is_left_out
    expected = [{"batch": "", "path": "NA", "reason": "not an image", "is_image": False, "is_left_out": False}]
    assert read_quarantine(tmp_path).to_dict("records") == expected


SIZES = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), max_size=40)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(sizes=SIZES, batch_size=st.integers(1, 7))
def test_batches_have_every_position_once_equal_sizes_and_no_more_than_batch_size(sizes, batch_size):
    sizes = np.array(sizes, np.int64).reshape(-1, 2)
    batches = batches_by_size(sizes, batch_size)
    assert sorted(position for batch in batches for position in batch) == list(range(len(sizes)))
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        assert len(np.unique(sizes[batch], axis=0)) == 1
        assert (np.diff(batch) > 0).all()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(sizes=SIZES, batch_size=st.integers(1, 7))
def test_at_most_one_batch_of_each_size_is_not_full(sizes, batch_size):
    array = np.array(sizes, np.int64).reshape(-1, 2)
    smaller = [sizes[batch[0]] for batch in batches_by_size(array, batch_size) if len(batch) < batch_size]
    assert len(smaller) == len(set(smaller))


def test_batches_of_a_hand_worked_example():
    sizes = np.array([[2, 3], [1, 9], [2, 3], [2, 3], [1, 9]])
    assert [batch.tolist() for batch in batches_by_size(sizes, 2)] == [[1, 4], [0, 2], [3]]


@pytest.fixture
def pack(tmp_path):
    """Return a function that packs contents as a data set of the given name and returns its folder."""

    def pack(name, contents):
        folder = tmp_path / name
        folder.mkdir()
        (folder / IMAGES_FILE).write_bytes(b"".join(contents))
        n_bytes = [len(content) for content in contents]
        sizes = np.array([stored_size(content) for content in contents])
        inventory = pd.DataFrame(
            {
                "height": sizes[:, 0],
                "width": sizes[:, 1],
                "offset": np.cumsum([0, *n_bytes[:-1]]),
                "n_bytes": n_bytes,
            }
        )
        inventory.to_parquet(folder / INVENTORY_FILE)
        return folder

    return pack


@pytest.fixture
def contents(draw_tile, encode):
    """The bytes of five images of different sizes and formats."""
    formats = ["JPEG", "PNG", "JPEG", "TIFF", "JPEG"]
    return [encode(draw_tile(seed, size_px=40 + 8 * seed)[:32], name) for seed, name in enumerate(formats)]


def test_packed_images_give_back_the_original_bytes_and_pixels(pack, contents):
    images = PackedImages(pack("walls", contents))
    for row in (3, 0, 4, 1, 2):
        assert images.content(row) == contents[row]
        np.testing.assert_array_equal(images.pixels(row), decode(contents[row]))
        assert tuple(images.sizes[row]) == images.pixels(row).shape[:2]


def test_labelled_images_come_from_several_data_sets_in_the_order_of_the_rows(pack, contents, tmp_path):
    pack("walls", contents[:3])
    pack("decks", contents[3:])
    rows = pd.DataFrame(
        {
            "dataset": ["decks", "walls", "walls", "decks"],
            "row": [1, 2, 0, 0],
            "label": ["crack", "intact", "crack", "intact"],
        },
        index=[17, 3, 99, 4],  # as filtering a manifest leaves it
    )
    images = LabelledImages(rows, tmp_path)
    expected = [decode(contents[number]) for number in (4, 2, 0, 3)]
    assert len(images) == 4
    assert images.labels.tolist() == [True, False, True, False]
    assert images.rows["row"].to_dict() == {0: 1, 1: 2, 2: 0, 3: 0}
    for position, pixels in enumerate(expected):
        np.testing.assert_array_equal(images.pixels(position), pixels)
        assert tuple(images.sizes[position]) == pixels.shape[:2]


def test_no_rows_give_no_images(tmp_path):
    images = LabelledImages(pd.DataFrame({"dataset": [], "row": [], "label": []}), tmp_path)
    assert len(images) == 0
    assert batches_by_size(images.sizes, 8) == []
