"""Images of any channels and 8 or 16 bits: decoded as tifffile and OpenCV wrote them, resized, augmented, refused."""

import io
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import cv2
import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from callbacks.plots.colors import as_rgb
from datamodules.transforms import tiff
from datamodules.transforms.augment import augment
from datamodules.transforms.bands import Bands
from datamodules.transforms.clips import require_readable
from datamodules.transforms.draws import Augmentation
from datamodules.transforms.headers import PixelLimit
from datamodules.transforms.images import decode_image, fit_on_canvas, resized
from datamodules.transforms.pixels import Pixels
from datamodules.transforms.tiff import Tiff
from mambaeye.encoders.base import Encoder
from mambaeye.encoders.glimpse_vit import GlimpseViT
from mambaeye.encoders.hnet import HNet
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.encoders.vim import Vim
from mambaeye.encoders.vit import ViT
from mambaeye.errors import InputError

NO_COLOR = {"jitter": 0.0, "grayscale": 0.0}


def noise(height: int, width: int, channels: int, bits: int, seed: int = 0) -> np.ndarray:
    """(H, W, C) of all values."""
    values = np.random.default_rng(seed).integers(0, 1 << bits, (height, width, channels))
    return values.astype(f"uint{bits}")


def written(image: np.ndarray, **how: object) -> bytes:
    """A TIFF by tifffile."""
    file = io.BytesIO()
    planar = how.get("planarconfig") == "separate"
    data = image[..., 0] if image.shape[2] == 1 else image.transpose(2, 0, 1) if planar else image
    if image.shape[2] == 1:
        how.pop("planarconfig", None)
    tifffile.imwrite(file, data, **({"photometric": "minisblack"} | how))
    return file.getvalue()


def decoded(data: bytes, channels: int, bits: int, **levels: object) -> np.ndarray:
    """The image of a file's bytes."""
    return Bands(data, Pixels(channels, bits, **levels), PixelLimit(), "sample a").decoded()


def layouts() -> Iterator[dict[str, object]]:
    """Ways of tifffile to write."""
    for tile, planar, compression, big, order in product(
        (None, (16, 32)), ("contig", "separate"), (None, "zlib"), (False, True), "<>"
    ):
        how = {"tile": tile, "planarconfig": planar, "compression": compression, "bigtiff": big, "byteorder": order}
        yield how | ({} if tile else {"rowsperstrip": 10}) | ({"predictor": True} if compression and big else {})


@pytest.mark.parametrize(("channels", "bits"), [*product((2, 4, 5, 13), (8, 16)), (1, 16), (1, 8)])
def test_tiffs_are_decoded_as_they_were_written(channels: int, bits: int) -> None:
    for number, how in enumerate(layouts()):
        image = noise(37, 45, channels, bits, number)
        np.testing.assert_array_equal(decoded(written(image, **how), channels, bits), image, str(how))


@given(height=st.integers(1, 40), width=st.integers(1, 40), tiled=st.booleans(), seed=st.integers(0, 99))
def test_tiffs_of_odd_sizes(height: int, width: int, tiled: bool, seed: int) -> None:
    image = noise(height, width, 5, 16, seed)
    how: dict[str, object] = {"tile": (16, 16)} if tiled else {"rowsperstrip": 7}
    np.testing.assert_array_equal(decoded(written(image, planarconfig="contig", **how), 5, 16), image)
    np.testing.assert_array_equal(decoded(tiff.encoded(image), 5, 16), image)
    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(tiff.encoded(image))).reshape(image.shape), image)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "packbits", "tiff_adobe_deflate", "jpeg"])
def test_tiffs_of_pillow(compression: str) -> None:
    image = cv2.GaussianBlur(noise(50, 61, 4, 8), (9, 9), 3)
    for mode, channels in (("L", 1), ("RGB", 3), ("RGBA", 4)):
        if (mode, compression) == ("RGBA", "jpeg"):
            continue
        file = io.BytesIO()
        Image.fromarray(image[..., :channels].squeeze(), mode).save(file, "TIFF", compression=compression)
        found = Bands(file.getvalue(), Pixels(channels, 8), PixelLimit(), "sample a")._from_tiff()
        np.testing.assert_array_equal(found, np.asarray(Image.open(file)).reshape(found.shape))


@pytest.mark.parametrize(("photometric", "keep_rgb", "tables"), [(2, True, False), (6, False, False), (6, False, True)])
def test_jpegs_in_tiffs_are_those_of_pillow(photometric: int, keep_rgb: bool, tables: bool) -> None:
    """As slide scanners write them: RGB as it is or as YCbCr, with tables of all tiles in an entry of their own."""
    image = Image.fromarray(cv2.GaussianBlur(noise(48, 64, 3, 8), (0, 0), 3))
    whole, stream, shared = io.BytesIO(), io.BytesIO(), io.BytesIO()
    image.save(whole, "JPEG", keep_rgb=keep_rgb)
    image.save(stream, "JPEG", keep_rgb=keep_rgb, streamtype=2 if tables else 0)
    image.save(shared, "JPEG", keep_rgb=keep_rgb, streamtype=1)
    tags = {256: 64, 257: 48, 258: [8] * 3, 259: 7, 262: photometric, 277: 3, 278: 48, 284: 1}
    data = tiff.with_header(tags, stream.getvalue())
    tiled = Tiff.open(lambda start, size: data[start : start + size], len(data), "a")
    tiled = replace(tiled, tables=shared.getvalue() if tables else b"")
    np.testing.assert_array_equal(tiled.whole(), np.asarray(Image.open(whole)))
    larger = replace(tiled, layout=tiled.layout._replace(rows=24, height=24))
    with pytest.raises(InputError, match="a piece of it is no JPEG of its size"):
        larger.whole()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiffs_are_turned_upright_as_pillow_does(orientation: int) -> None:
    from PIL import ImageOps

    image = noise(5, 7, 4, 8)
    data = written(image, extratags=[(274, "H", 1, orientation, True)], planarconfig="contig", photometric="rgb")
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decoded(data, 4, 8), np.asarray(expected))


@pytest.mark.parametrize(("channels", "bits"), [(1, 8), (1, 16), (3, 16), (4, 8), (4, 16)])
def test_pngs_are_decoded_as_opencv_wrote_them(channels: int, bits: int) -> None:
    image = noise(20, 31, channels, bits)
    blue_first = image[..., {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]]
    _, data = cv2.imencode(".png", blue_first)
    np.testing.assert_array_equal(decoded(data.tobytes(), channels, bits), image)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_png_of_gray_and_alpha_has_two_channels(bits: int) -> None:
    image = noise(20, 31, 2, bits)
    rows = b"".join(b"\0" + row.astype(f">u{bits // 8}").tobytes() for row in image)
    chunks = [(b"IHDR", struct.pack(">2I5B", 31, 20, bits, 4, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part)) for name, part in chunks
    )
    np.testing.assert_array_equal(decoded(data, 2, bits), image)


def test_levels_are_black_and_white() -> None:
    image = np.array([[[0, 10], [100, 20], [300, 25], [500, 30], [501, 65535]]], np.uint16)
    found = decoded(tiff.encoded(image), 2, 16, levels=((100, 500), (20, 30)))
    shares = (image - [100.0, 20]) / [400, 10]
    np.testing.assert_array_equal(found, np.rint(shares.clip(0, 1) * 65535))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("interpolation", ["lanczos", "area"])
@pytest.mark.parametrize("side", [20, 64])
def test_each_channel_is_resized_as_rgb_is(bits: int, interpolation: str, side: int) -> None:
    image = np.dstack([cv2.GaussianBlur(noise(40, 33, 3, 8, seed), (0, 0), 1) for seed in (1, 2)])
    rgb = [resized(image[..., first : first + 3].copy(), side, "fit", interpolation) for first in (0, 3)]
    found = resized(image.astype(f"uint{bits}") * (257 if bits == 16 else 1), side, "fit", interpolation)
    assert found.dtype == f"uint{bits}"
    np.testing.assert_allclose(found / (257 if bits == 16 else 1), np.dstack(rgb), atol=1.6)


@given(seed=st.integers(0, 10_000))
def test_augmentation_moves_all_channels_alike(seed: int) -> None:
    rgb = cv2.GaussianBlur(noise(40, 52, 3, 8), (0, 0), 2)
    config = Augmentation(**NO_COLOR)
    five = np.dstack([rgb, rgb[..., :2]]).astype(np.uint16) * 257
    _, png = cv2.imencode(".png", rgb[..., ::-1])
    expected, box = augment(png.tobytes(), 48, config, np.random.default_rng(seed), "a")
    found, found_box = augment(five, 48, config, np.random.default_rng(seed), "a")
    assert (found.shape, found.dtype, found_box) == ((48, 48, 5), np.uint16, box)
    assert np.quantile(abs(found[..., :3] / 257 - expected), 0.99) < 4  # rounded to 8 bits step by step, or to 16
    np.testing.assert_allclose(found[..., :2].astype(int), found[..., 3:], atol=2)


def test_one_channel_keeps_its_axis() -> None:
    for seed in range(20):
        canvas, _ = augment(noise(30, 21, 1, 16), 40, Augmentation(**NO_COLOR), np.random.default_rng(seed), "a")
        assert canvas.shape == (40, 40, 1)
    assert fit_on_canvas(noise(1, 1, 1, 8), 16)[0].shape == (16, 16, 1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the image of sample a is empty"),
        (b"\xff\xd8\xff", "is neither TIFF nor PNG, of which 5 channels of 16 bits are read"),
        (written(noise(4, 4, 4, 16), planarconfig="contig"), "has 4 channels of 16 bits, and all are to have 5 chan"),
        (written(noise(4, 4, 5, 8), planarconfig="contig"), "has 5 channels of 8 bits, and all are to have 5 chan"),
        (written(noise(4, 4, 5, 8).astype(np.int16), planarconfig="contig"), "has values of 16 bits with a sign"),
        (written(noise(4, 4, 5, 8).astype(np.float32)), "has values of 32 bits in floating point"),
        (b"II*\0\x08\0\0\0", "its directory is not there"),
        (b"II*\0\xff\xff\xff\xff" + bytes(20), "its directory is not there"),
    ],
)
def test_what_is_not_as_it_should_be_is_said(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decoded(data, 5, 16)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_tiff_that_is_cut_short_does_not_decode(compression: str | None) -> None:
    whole = written(noise(40, 40, 5, 16), planarconfig="contig", compression=compression, rowsperstrip=10)
    decoded(whole, 5, 16)
    for length in (0, 3, 8, 20, 100, len(whole) // 2, len(whole) - 1):
        with pytest.raises(InputError, match=r"sample a"):
            decoded(whole[:length], 5, 16)


@given(at=st.integers(0, 10_000), value=st.integers(0, 255), order=st.sampled_from("<>"))
def test_damage_anywhere_ends_in_a_sentence_or_in_an_image_of_the_limit(at: int, value: int, order: str) -> None:
    data = bytearray(written(noise(9, 9, 5, 16), planarconfig="contig", compression="zlib", byteorder=order))
    data[at % len(data)] = value
    limit = PixelLimit(1 << 16)
    try:
        image = Bands(bytes(data), Pixels(5, 16), limit, "sample a").decoded()
        said = "sample a" if image.shape[0] * image.shape[1] <= limit.pixels else "too large"
    except InputError as error:
        said = str(error)
    assert "sample a" in said


@pytest.mark.parametrize(("channels", "bits"), [(5, 16), (5, 8), (13, 16)])
def test_channels_that_are_no_colours_are_named_where_rgb_is_read(channels: int, bits: int) -> None:
    words = f"sample a has {channels} channels of {bits} bits, not RGB: pack such images with --channels {channels}"
    with pytest.raises(InputError, match=words):
        require_readable(written(noise(9, 7, channels, bits), planarconfig="contig"), False, PixelLimit(), "sample a")


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("channels", [1, 3])
def test_a_damaged_tiff_of_colours_is_called_damaged(channels: int) -> None:
    with pytest.raises(InputError, match="sample a does not decode"):
        decode_image(written(noise(9, 7, channels, 8))[:150], "sample a")


def test_a_piece_that_would_become_more_than_it_says_is_stopped() -> None:
    tags = {256: 16, 257: 16, 258: [16] * 5, 259: 8, 262: 1, 277: 5, 278: 16, 284: 1, 338: [0] * 4}
    bomb = tiff.with_header(tags, zlib.compress(bytes(200_000_000), 9))
    tracemalloc.start()
    with pytest.raises(InputError, match="holds more than its size says"):
        decoded(bomb, 5, 16)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_sizes_are_refused_before_anything_is_decoded() -> None:
    tags = {256: 100_000, 257: 100_000, 258: [16] * 5, 259: 8, 262: 1, 277: 5, 278: 100_000, 284: 1}
    with pytest.raises(
        InputError, match="has 100000 x 100000 pixels, more than the 178956970 of --data.loader.max_pixel"
    ):
        decoded(tiff.with_header(tags, zlib.compress(b"")), 5, 16)
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: 1 << 20, 323: 1 << 20, 324: 8, 325: 8}
    with pytest.raises(InputError, match="has tiles of 1048576 x 1048576 pixels, which is not read here"):
        decoded(tiff.with_header(tags, b""), 1, 8)


def test_a_directory_that_leads_back_to_itself_is_read_once() -> None:
    data = bytearray(tiff.encoded(noise(8, 8, 5, 16)))
    entries = int.from_bytes(data[8:10], "little")
    data[10 + 12 * entries :][:4] = (8).to_bytes(4, "little")
    data[10 + 12 * entries : 14 + 12 * entries] = (8).to_bytes(4, "little")
    np.testing.assert_array_equal(decoded(bytes(data), 5, 16), noise(8, 8, 5, 16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [MambaEye, HNet, GlimpseViT, ViT, Vim])
def test_encoders_see_16_bits_as_they_see_8(kind: type[Encoder], dtype: torch.dtype) -> None:
    """The largest value is more than float16 holds."""
    torch.manual_seed(0)
    sizes = {HNet: {"blocks": (1, 1)}, ViT: {"depth": 1, "heads": 2}, GlimpseViT: {"depth": 1, "heads": 2}}
    encoder = kind(num_classes=3, dim=32, channels=5, **sizes.get(kind, {"depth": 1})).eval()
    if kind in (MambaEye, HNet, GlimpseViT):
        patches, places = torch.from_numpy(noise(30, 256, 5, 8)), torch.randint(0, 50, (2, 15, 2))
        shape, rest = (2, 15, 5, 16, 16), (places,)
    else:
        patches, shape, rest = torch.from_numpy(noise(48, 70, 5, 8)), (1, 48, 70, 5), ()
    eight = patches.reshape(shape)
    eight.view(-1)[:100] = 255
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        expected = encoder(eight, *rest)
        found = encoder((eight.to(torch.int32) * 257).to(torch.uint16), *rest)
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected, atol=1e-5 if dtype == torch.float32 else 0.05, rtol=0)


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 13])
def test_any_image_can_be_shown(channels: int) -> None:
    image = noise(4, 4, channels, 16)
    shown = as_rgb(image)
    assert (shown.shape, shown.dtype) == ((4, 4, 3), np.uint8)
    np.testing.assert_array_equal(shown[..., 0], image[..., 0] // 256)
    np.testing.assert_array_equal(shown[..., 2], image[..., -1] // 256)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (Pixels(0, 8), "data.channels is 0: give 1 to 1024"),
        (Pixels(5, 12), "data.bits is 12: give 8 or 16"),
        (
            Pixels(5, 16, ((0, 1), (0, 1))),
            "data.levels has 2 pairs: give one for all channels, or one for each of the 5",
        ),
        (Pixels(5, 8, ((0, 4000),)), r"data.levels has \[0,4000\]: give the value that is black, and a larger one"),
        (Pixels(3, 8, ((0, 100),)), "data.levels is of images of other channels or bits than 3 and 8"),
    ],
)
def test_pixels_that_there_are_not(pixels: Pixels, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pixels.require_possible("data.")
