"""Decoding, against Pillow and against pixels that are known; and the fitting onto a canvas."""

import io
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from datamodules.transforms.headers import PixelLimit
from datamodules.transforms.images import decode_file, decode_image, fit_on_canvas
from mambaeye.errors import InputError

PIXELS = cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8), (64, 48))
ALPHA = np.random.default_rng(1).integers(0, 256, (48, 64), dtype=np.uint8)
ALPHA[:8] = 0
PICTURE = Image.fromarray(PIXELS)
CLEAR = Image.fromarray(np.dstack([PIXELS, ALPHA]))


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def ycck() -> bytes:
    """A CMYK JPEG whose Adobe marker says YCCK: other colours than it was made from, the same for every decoder."""
    data = bytearray(encoded(PICTURE.convert("CMYK"), "JPEG", quality=95))
    start = data.index(b"\xff\xee") + 2
    transform = start + struct.unpack(">H", data[start : start + 2])[0] - 1
    assert data[transform] == 0
    data[transform] = 2
    return bytes(data)


def cmyk_without_marker() -> bytes:
    data = encoded(PICTURE.convert("CMYK"), "JPEG", quality=95)
    start = data.index(b"\xff\xee")
    return data[:start] + data[start + 2 + struct.unpack(">H", data[start + 2 : start + 4])[0] :]


def frames(picture: Image.Image) -> list[Image.Image]:
    return [picture.rotate(90, expand=False), picture.rotate(180)]


KINDS = {
    "jpeg": encoded(PICTURE, "JPEG", quality=90),
    "progressive jpeg": encoded(PICTURE, "JPEG", quality=90, progressive=True),
    "gray jpeg": encoded(PICTURE.convert("L"), "JPEG"),
    "cmyk jpeg": encoded(PICTURE.convert("CMYK"), "JPEG", quality=95),
    "cmyk jpeg without adobe marker": cmyk_without_marker(),
    "ycck jpeg": ycck(),
    "png": encoded(PICTURE, "PNG"),
    "gray png": encoded(PICTURE.convert("L"), "PNG"),
    "gray alpha png": encoded(CLEAR.convert("LA"), "PNG"),
    "bilevel png": encoded(PICTURE.convert("1"), "PNG"),
    "palette png": encoded(PICTURE.quantize(16), "PNG"),
    "palette png with a clear colour": encoded(PICTURE.quantize(16), "PNG", transparency=3),
    "alpha png": encoded(CLEAR, "PNG"),
    "png with a clear colour": encoded(PICTURE, "PNG", transparency=tuple(int(value) for value in PIXELS[3, 3])),
    "animated png": encoded(CLEAR, "PNG", save_all=True, append_images=frames(CLEAR)),
    "webp": encoded(PICTURE, "WEBP", lossless=True),
    "lossy webp": encoded(PICTURE, "WEBP", quality=80),
    "alpha webp": encoded(CLEAR, "WEBP", lossless=True, exact=True),
    "animated webp": encoded(PICTURE, "WEBP", lossless=True, save_all=True, append_images=frames(PICTURE)),
    "animated gif": encoded(PICTURE, "GIF", save_all=True, append_images=frames(PICTURE)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_decodes_as_pillow_converts(kind: str) -> None:
    image = decode_image(KINDS[kind], "x")
    with Image.open(io.BytesIO(KINDS[kind])) as picture:
        clear = picture.has_transparency_data
        expected = np.asarray(on_white(picture) if clear else picture.convert("RGB"))
    assert (image.dtype, image.shape) == (np.uint8, expected.shape)
    assert np.abs(image.astype(int) - expected).max() <= (1 if "ycck" in kind or "cmyk" in kind else 0)
    assert image.flags.c_contiguous
    assert image.flags.writeable


def on_white(picture: Image.Image) -> Image.Image:
    """Lay a picture on white, by Pillow."""
    clear = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_what_is_transparent_lies_on_white(kind: str) -> None:
    """By the definition of alpha; AVIF loses some colour."""
    lossless = {"WEBP": {"lossless": True, "exact": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}
    data = encoded(CLEAR, kind, **lossless.get(kind, {}))
    share = ALPHA[..., None] / 255
    expected = PIXELS * share + 255 * (1 - share)
    off = np.abs(decode_image(data, "x") - expected)
    assert (off[:8] == 0).all()  # where nothing of the image shows
    assert off.max() <= (1 if kind != "AVIF" else 4)
    opaque = encoded(PICTURE, "GIF")
    assert (decode_image(encoded(Image.open(io.BytesIO(opaque)), "GIF"), "x") == decode_image(opaque, "x")).all()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_of_sixteen_bits_the_high_ones_are_kept(channels: int) -> None:
    pixels = np.random.default_rng(channels).integers(0, 65536, (48, 64, channels), dtype=np.uint16)
    pixels[..., 3:] = 65535  # opaque, where there is alpha
    chunks = struct.pack(">IIBBBBB", 64, 48, 16, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    image = decode_image(png(chunks, zlib.compress(rows)), "x")
    np.testing.assert_array_equal(image, np.broadcast_to(pixels[..., :3] >> 8, image.shape))


def png(header: bytes, data: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_comes_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    data = encoded(PICTURE, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(decode_image(data, "x"), expected)
    if orientation == 6 and kind not in (
        "JPEG",
        "AVIF",
    ):  # the commonest of a telephone: stored a quarter turn to the left
        np.testing.assert_array_equal(expected, np.rot90(PIXELS, -1))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_one_pixel(kind: str) -> None:
    data = encoded(Image.new("RGB", (1, 1), (200, 100, 50)), kind)
    np.testing.assert_allclose(decode_image(data, "x"), [[[200, 100, 50]]], atol=3)


def test_huge() -> None:
    """108 million pixels, more than Pillow takes without a warning."""
    pixels = np.zeros((9000, 1500), np.uint8)  # eight pixels a byte
    pixels[-1, -1] = 1
    header = struct.pack(">IIBBBBB", 12000, 9000, 1, 0, 0, 0, 0)
    image = decode_image(png(header, zlib.compress(np.pad(pixels, ((0, 0), (1, 0))).tobytes(), 1)), "x")
    assert image.shape == (9000, 12000, 3)
    assert image[-1, -1].tolist() == [255, 255, 255]
    assert not image[-1, -2].any()


def test_more_pixels_than_can_be_read_are_refused() -> None:
    header = struct.pack(">IIBBBBB", 40000, 40000, 8, 0, 0, 0, 0)
    with pytest.raises(InputError, match=r"sample a/b does not decode .*MAX_IMAGE_PIXELS"):
        decode_image(png(header, zlib.compress(b"")), "sample a/b")


@pytest.mark.parametrize(
    "kind", ["jpeg", "progressive jpeg", "gray jpeg", "cmyk jpeg", "png", "webp", "lossy webp", "alpha webp"]
)
def test_cut_short_at_any_byte_is_refused(kind: str) -> None:
    """Also where a thumbnail's end mark would look like the image's own."""
    whole = KINDS[kind]
    if kind == "jpeg":
        whole = encoded(PICTURE, "JPEG", exif=b"Exif\0\0" + encoded(PICTURE.resize((16, 12)), "JPEG"))
    decode_image(whole, "x")
    for length in range(0, len(whole), 1 if len(whole) < 2000 else 7):
        with pytest.raises(InputError, match="the image of sample a/b"):
            decode_image(whole[:length], "sample a/b")


def test_bytes_after_the_end_do_no_harm() -> None:
    np.testing.assert_array_equal(
        decode_image(KINDS["jpeg"] + bytes(100) + b"junk", "x"), decode_image(KINDS["jpeg"], "x")
    )


@pytest.mark.parametrize("data", [b"", b"not an image", b"<svg xmlns=''></svg>", b"\xff\xd8\xff", bytes(1000)])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="the image of sample a/b"):
        decode_image(data, "sample a/b")


def damaged(data: bytes, at: float) -> bytes:
    """A JPEG with a few bytes of its scan that are markers nobody expects there."""
    place = round(len(data) * at)
    return data[:place] + b"\xff\xd5\xff\xd9" + data[place + 4 :]


@pytest.mark.parametrize("kind", ["jpeg", "progressive jpeg", "gray jpeg", "cmyk jpeg", "ycck jpeg"])
@pytest.mark.parametrize("at", [0.6, 0.75, 0.9])
def test_a_jpeg_that_libjpeg_only_warns_of_is_refused_and_the_console_stays_clean(
    kind: str, at: float, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="the image of sample a/b does not decode"):
        decode_image(damaged(KINDS[kind], at), "sample a/b")
    assert capfd.readouterr() == ("", "")


def test_bytes_between_the_scan_and_the_end_do_no_harm() -> None:
    whole = KINDS["jpeg"]
    more = whole[:-2] + b"\x01\x02\x03" + whole[-2:]
    np.testing.assert_array_equal(decode_image(more, "x"), decode_image(whole, "x"))


def test_other_damage_leaves_the_console_clean(capfd: pytest.CaptureFixture[str]) -> None:
    for kind in ("png", "webp", "animated gif", "palette png"):
        whole = KINDS[kind]
        broken = whole[: len(whole) // 2] + bytes(20) + whole[len(whole) // 2 + 20 :]
        with suppress(InputError) if "gif" in kind or "webp" in kind else pytest.raises(InputError, match="of x"):
            decode_image(broken, "x")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_heic_is_called_what_it_is(brand: bytes, tmp_path: Path) -> None:
    data = bytes([0, 0, 0, 24]) + b"ftyp" + brand + bytes(4) + b"mif1heic" + bytes(100)
    with pytest.raises(InputError, match="the image of x is HEIC, which is not read here: save it as JPEG"):
        PixelLimit().require(data, "x")
    (tmp_path / "x.jpg").write_bytes(data)
    with (tmp_path / "x.jpg").open("rb") as file, pytest.raises(InputError, match="is HEIC"):
        decode_file(file, "x", PixelLimit())


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_and_its_bytes_give_the_same(kind: str, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(KINDS[kind])
    with (tmp_path / "image").open("rb") as file:
        np.testing.assert_array_equal(decode_file(file, "x", PixelLimit())[0], decode_image(KINDS[kind], "x"))


@settings(deadline=None)
@given(height=st.integers(1, 300), width=st.integers(1, 300), side=st.integers(16, 200))
def test_fits_centred_with_its_aspect_kept(height: int, width: int, side: int) -> None:
    canvas, box = fit_on_canvas(np.full((height, width, 3), 7, np.uint8), side)
    assert (canvas.shape, canvas.dtype) == ((side, side, 3), np.uint8)
    assert max(box.height, box.width) == side
    shorter, longer = sorted((height, width))
    assert abs(min(box.height, box.width) - max(1, side * shorter / longer)) <= 0.5 + 1e-9
    assert (box.height < box.width) <= (height < width)
    assert abs(2 * box.row + box.height - side) <= 1
    assert abs(2 * box.col + box.width - side) <= 1
    assert (canvas[box.row : box.row + box.height, box.col : box.col + box.width] == 7).all()
    assert canvas.sum() == 7 * 3 * box.height * box.width
