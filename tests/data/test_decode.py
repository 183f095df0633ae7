import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from limbeck.data import decode


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


RED = Image.new("RGB", (20, 16), (250, 10, 10))


@pytest.mark.parametrize(
    "data",
    [
        encoded(RED, "JPEG"),
        encoded(RED.convert("CMYK"), "JPEG"),
        encoded(RED, "PNG"),
        encoded(RED.convert("P"), "PNG"),
        encoded(RED.convert("RGBA"), "PNG"),
        encoded(RED, "BMP"),
        encoded(RED, "WEBP", lossless=True),
        encoded(RED.convert("CMYK"), "TIFF"),
        encoded(RED, "GIF"),
    ],
)
def test_kinds_become_rgb(data: bytes):
    image = decode.rgb(data)
    assert image.mode == "RGB"
    assert image.size == (20, 16)
    red, green, blue = np.asarray(image).reshape(-1, 3).mean(0)
    assert red > 225
    assert max(green, blue) < 45


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_greyscale_is_repeated(kind: str):
    pixels = np.asarray(decode.rgb(encoded(Image.fromarray(noise(9, 7)), kind)))
    assert pixels.shape == (9, 7, 3)
    assert (pixels == pixels[:, :, :1]).all()


def test_sixteen_bits_keep_the_upper_eight():
    values = np.random.default_rng(0).integers(0, 65536, (5, 6), dtype=np.uint16)
    pixels = np.asarray(decode.rgb(encoded(Image.fromarray(values), "PNG")))
    assert (pixels[:, :, 0] == values >> 8).all()


def test_transparency_is_laid_on_white():
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert (np.asarray(decode.rgb(encoded(clear, "PNG"))) == 255).all()
    palette = RED.quantize(4)
    palette.info["transparency"] = int(np.asarray(palette)[0, 0])
    assert (np.asarray(decode.rgb(encoded(palette, "PNG"))) == 255).all()


def test_first_frame_of_an_animation():
    other = Image.new("RGB", RED.size, (0, 0, 250))
    data = encoded(RED, "GIF", save_all=True, append_images=[other])
    assert np.asarray(decode.rgb(data))[0, 0, 0] > 200


def test_exif_orientation():
    left = np.zeros((16, 32, 3), np.uint8)
    left[:, :16] = 255
    exif = Image.Exif()
    exif[274] = 6  # stored on its side: turn by 90 degrees
    data = encoded(Image.fromarray(left), "JPEG", exif=exif)
    pixels = np.asarray(decode.rgb(data))
    assert pixels.shape == (32, 16, 3)
    assert pixels[2].mean() > 250
    assert pixels[-2].mean() < 5


def tiff(*entries: bytes) -> bytes:
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4)


TURN = struct.pack("<HHIHH", 274, 3, 1, 6, 0)


@pytest.mark.parametrize(
    ("kind", "exif", "turned"),
    [
        ("JPEG", b"Exif\0\0" + tiff(TURN, struct.pack("<HHI4s", 282, 2, 4, b"72\0\0")), True),
        ("JPEG", b"Exif\0\0" + tiff(TURN, struct.pack("<HHIi", 282, 9, 1, -5)), True),
        ("JPEG", b"Exif\0\0" + tiff(TURN, struct.pack("<HHI4s", 296, 2, 4, b"in\0\0")), True),
        ("JPEG", b"Exif\0\0" + tiff(TURN, struct.pack("<HHIi", 0x8769, 9, 1, -5)), True),
        ("JPEG", b"Exif\0\0" + tiff(struct.pack("<HHI4s", 274, 2, 4, b"up\0\0")), False),
        ("JPEG", b"Exif\0\0" + tiff(TURN)[:9], False),
        ("PNG", b"no EXIF at all", False),
        ("WEBP", b"Exif\0\0no EXIF at all", False),
    ],
)
def test_odd_exif_does_not_refuse_sound_pixels(kind: str, exif: bytes, turned: bool):
    data = encoded(RED, kind, exif=exif)
    with decode.quiet_pillow():
        image = decode.rgb(data)
        assert image.size == ((16, 20) if turned else (20, 16))
        assert decode.size(data) == (image.height, image.width)
    assert np.asarray(image)[..., 0].mean() > 225


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_undone_as_pillow_does(orientation: int):
    image = Image.fromarray(noise(16, 24, 3))
    exif = Image.Exif()
    exif[274] = orientation
    data = encoded(image, "PNG", exif=exif)
    want = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(np.asarray(decode.rgb(data)), np.asarray(want))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_sixteen_bit_files_are_read_by_the_bits_in_use(bits: int):
    values = np.linspace(0, (1 << bits) - 1, 60).astype(np.uint16).reshape(6, 10)
    data = encoded(Image.fromarray(values), "PNG")
    assert decode.brightest(data) == ((1 << bits) - 1, True)
    pixels = np.asarray(decode.rgb(data, bits=bits))
    assert (pixels[:, :, 0] == values >> (bits - 8)).all()
    if bits > 8:
        with pytest.raises(decode.BadImageError, match=f"a value of {values.max()}, where .* use 8 bits"):
            decode.rgb(data, bits=8)


def test_large_jpeg_is_decoded_smaller():
    data = encoded(Image.fromarray(noise(400, 800, 3)), "JPEG", quality=95)
    assert len(data) > 1 << 16
    assert decode.rgb(data).size == (800, 400)
    assert decode.rgb(data, needed=40).size == (200, 100)


def bomb() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"),
        (b"hello, this is a text", "not an image"),
        (encoded(RED, "JPEG")[:300], "runcated|incomplete"),
        (encoded(Image.fromarray(noise(90, 90, 3)), "PNG")[:9000], "runcated"),
        (bomb(), "decompression bomb"),
        (encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "no stated range"),
        (encoded(Image.fromarray(np.full((4, 4), 1 << 20, np.int32)), "TIFF"), "no stated range"),
    ],
)
def test_refused_with_a_reason(data: bytes, why: str):
    with pytest.raises(decode.BadImageError, match=why) as caught:
        decode.rgb(data)
    assert "\n" not in str(caught.value)


def test_square_is_resize_and_center_crop():
    image = Image.fromarray(noise(64, 100, 3))
    np.testing.assert_array_equal(decode.square(image, 64), np.asarray(image)[:, 18:82].transpose(2, 0, 1))
    resized = image.resize((50, 32), Image.Resampling.BICUBIC)
    want = np.asarray(resized)[2:30, 11:39].transpose(2, 0, 1).astype(int)
    np.testing.assert_allclose(decode.square(image, 28, 28 / 32).astype(int), want, atol=2)


def test_array_passes_through():
    pixels = noise(8, 8, 3)
    np.testing.assert_array_equal(decode.square(decode.rgb(pixels), 8), pixels.transpose(2, 0, 1))
    assert decode.shorter_side(pixels) == 8
