# SPDX-License-Identifier: Apache-2.0
"""Picture files of every mode, compared with what NumPy makes of the pixels written."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, TiffImagePlugin

from rfjax.data.sources.pictures import BrokenPicture, decode_picture, read_size
from rfjax.errors import UserError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7), np.uint8)
RGB = RNG.integers(0, 256, (5, 7, 3), np.uint8)
ALPHA = RNG.integers(0, 256, (5, 7), np.uint8)
DEEP = RNG.integers(0, 65536, (5, 7), np.uint16)
DEEP[0, :3] = [0, 255, 65535]
BLUE = (10, 60, 200)


def file_of(image, file_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def decode(content, **options):
    picture = decode_picture(content, name="p", **options)
    assert picture.dtype == np.uint8
    assert picture.flags.c_contiguous
    assert read_size(content, name="p") == picture.shape[:2]
    return picture


def three(grey):
    """A grey picture in RGB."""
    return np.repeat(np.asarray(grey, np.uint8)[..., None], 3, axis=-1)


def over(colours, alpha, background):
    """Colours laid on a background, in real numbers."""
    share = np.asarray(alpha, np.float64)[..., None] / 255
    return share * colours + (1 - share) * np.array(background)


def palette_image(alpha=None):
    """A picture of 4 colours, its indices, the colours."""
    indices = RNG.integers(0, 4, (5, 7), np.uint8)
    colours = RNG.integers(0, 256, (4, 3), np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putdata(indices.ravel().tolist())
    image.putpalette(colours.tobytes())
    return image, indices, colours


# -- Modes ---------------------------------------------------------------------------


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "PPM"])
def test_rgb_and_grey_are_what_was_written(file_format):
    image = decode(file_of(Image.fromarray(RGB), file_format))
    np.testing.assert_array_equal(image, RGB)
    image = decode(file_of(Image.fromarray(GREY), file_format))
    np.testing.assert_array_equal(image, three(GREY))


@pytest.mark.parametrize("file_format", ["WEBP", "JPEG2000"])
def test_lossless_files_of_other_formats(file_format):
    options = {"lossless": True} if file_format == "WEBP" else {}
    image = decode(file_of(Image.fromarray(RGB), file_format, **options))
    np.testing.assert_array_equal(image, RGB)


@pytest.mark.parametrize("file_format", ["JPEG", "AVIF"])
def test_lossy_files_are_near(file_format):
    smooth = (
        np.zeros((16, 24, 3), np.uint8) + np.arange(16, dtype=np.uint8)[:, None, None]
    )
    image = decode(file_of(Image.fromarray(smooth * 8), file_format, quality=95))
    assert np.abs(image.astype(int) - smooth * 8).max() < 8


def test_black_and_white():
    image = decode(file_of(Image.fromarray(GREY).convert("1", dither=0), "PNG"))
    np.testing.assert_array_equal(image, three(np.where(GREY >= 128, 255, 0)))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "PPM"])
def test_16_bits_are_scaled_and_not_clipped(file_format):
    image = decode(file_of(Image.fromarray(DEEP), file_format))
    expected = np.rint(DEEP / 65535 * 255)
    np.testing.assert_array_equal(image, three(expected))
    # Control: Pillow's own conversion is another one.
    clipped = Image.open(io.BytesIO(file_of(Image.fromarray(DEEP), file_format)))
    assert np.abs(np.asarray(clipped.convert("RGB")).astype(int) - image).max() > 50


def test_16_bits_of_colour():
    """Pillow cannot write them, so the chunks are written by hand."""

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    deep = RNG.integers(0, 65536, (5, 7, 3), np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    content = b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">IIBBBBB", 7, 5, 16, 2, 0, 0, 0)
    )
    content += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert np.abs(decode(content) - deep / 65535 * 255).max() <= 1


def test_tiff_in_which_white_is_zero():
    options = {"tiffinfo": TiffImagePlugin.ImageFileDirectory_v2()}
    content = bytearray(file_of(Image.fromarray(DEEP), "TIFF", **options))
    upright = decode(bytes(content))
    # Tag 262, type short, one value: 1 is changed to 0.
    place = content.index(b"\x06\x01\x03\x00\x01\x00\x00\x00")
    content[place + 8] = 0
    np.testing.assert_array_equal(decode(bytes(content)), 255 - upright)


def test_pixels_without_a_stated_range_are_refused():
    for pixels in (DEEP.astype(np.int32), DEEP.astype(np.float32)):
        content = file_of(Image.fromarray(pixels), "TIFF")
        with pytest.raises(BrokenPicture, match="picture p .*pixels of 32 bits"):
            decode_picture(content, name="p")


def test_cmyk():
    inks = RNG.integers(0, 256, (5, 7, 4), np.uint8)
    content = file_of(Image.fromarray(inks, mode="CMYK"), "TIFF")
    left = 255.0 - inks.astype(np.float64)
    expected = left[..., :3] * left[..., 3:] / 255
    assert np.abs(decode(content) - expected).max() <= 1


def test_cmyk_jpeg_is_not_inverted():
    inks = np.zeros((16, 16, 4), np.uint8)
    inks[..., 1:3] = 255  # magenta and yellow
    content = file_of(Image.fromarray(inks, mode="CMYK"), "JPEG", quality=95)
    assert np.abs(decode(content).astype(int) - (255, 0, 0)).max() < 8


def test_palette():
    image, indices, colours = palette_image()
    for file_format in ("PNG", "GIF", "TIFF"):
        content = file_of(image, file_format)
        np.testing.assert_array_equal(decode(content), colours[indices])


# -- Transparency --------------------------------------------------------------------


@pytest.mark.parametrize("background", [(255, 255, 255), BLUE])
def test_alpha_is_laid_on_the_background(background):
    rgba = np.dstack([RGB, ALPHA])
    image = decode(file_of(Image.fromarray(rgba), "PNG"), background=background)
    assert np.abs(image - over(RGB, ALPHA, background)).max() <= 1
    image = decode(
        file_of(Image.fromarray(np.dstack([GREY, ALPHA])), "PNG"), background=background
    )
    assert np.abs(image - over(three(GREY), ALPHA, background)).max() <= 1
    # Control: alpha that is dropped gives another picture.
    assert np.abs(image.astype(int) - three(GREY)).max() > 50


def test_what_is_transparent_has_no_colour():
    rgba = np.dstack([RGB, np.zeros_like(ALPHA)])
    image = decode(file_of(Image.fromarray(rgba), "PNG"), background=BLUE)
    np.testing.assert_array_equal(image, np.broadcast_to(BLUE, RGB.shape))


def test_palette_with_transparency():
    image, indices, colours = palette_image()
    opacity = np.array([0, 100, 255, 255], np.uint8)
    content = file_of(image, "PNG", transparency=opacity.tobytes())
    expected = over(colours[indices], opacity[indices], BLUE)
    assert np.abs(decode(content, background=BLUE) - expected).max() <= 1
    for file_format in ("PNG", "GIF"):
        content = file_of(image, file_format, transparency=2)
        expected = np.where((indices == 2)[..., None], BLUE, colours[indices])
        np.testing.assert_array_equal(decode(content, background=BLUE), expected)


@pytest.mark.parametrize("pixels", [GREY, RGB, DEEP], ids=["grey", "rgb", "16 bits"])
def test_one_colour_that_is_transparent(pixels):
    hidden = pixels[1, 2]
    transparency = int(hidden) if pixels.ndim == 2 else tuple(map(int, hidden))
    content = file_of(Image.fromarray(pixels), "PNG", transparency=transparency)
    matches = pixels == hidden
    matches = matches.all(axis=-1) if pixels.ndim == 3 else matches
    shown = (
        pixels
        if pixels.ndim == 3
        else three(np.rint(pixels / np.iinfo(pixels.dtype).max * 255))
    )
    expected = np.where(matches[..., None], BLUE, shown)
    np.testing.assert_array_equal(decode(content, background=BLUE), expected)


# -- Orientation, frames, profiles ---------------------------------------------------

# Orientation -> what a viewer does with the stored pixels; EXIF 2.3, table 6.
VIEWS = {
    1: lambda p: p,
    2: np.fliplr,
    3: lambda p: np.rot90(p, 2),
    4: np.flipud,
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: np.rot90(p.transpose(1, 0, 2), 2),
    8: lambda p: np.rot90(p, 1),
    9: lambda p: p,  # there is no such orientation
}


@pytest.mark.parametrize("orientation", VIEWS)
@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
def test_orientation_of_the_camera(file_format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if file_format == "WEBP" else {}
    content = file_of(Image.fromarray(RGB), file_format, exif=exif, **options)
    np.testing.assert_array_equal(decode(content), VIEWS[orientation](RGB))


def test_orientation_of_a_jpeg():
    tall = np.zeros((32, 16, 3), np.uint8)
    tall[:16] = 200
    exif = Image.Exif()
    exif[0x0112] = 6
    content = file_of(Image.fromarray(tall), "JPEG", exif=exif, quality=95)
    image = decode(content)
    assert image.shape == (16, 32, 3)
    assert np.abs(image.astype(int) - np.rot90(tall, -1)).max() < 8


def test_damaged_exif_means_upright():
    content = file_of(Image.fromarray(RGB), "PNG", exif=b"Exif\0\0no such thing")
    np.testing.assert_array_equal(decode(content), RGB)


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation(file_format):
    frames = [
        Image.fromarray(np.full((5, 7, 3), colour, np.uint8))
        for colour in ((250, 0, 0), (0, 250, 0))
    ]
    options = {"lossless": True} if file_format == "WEBP" else {}
    content = file_of(
        frames[0], file_format, save_all=True, append_images=frames[1:], **options
    )
    np.testing.assert_array_equal(decode(content)[2, 3], [250, 0, 0])


def swapped_profile():
    """sRGB in which red and blue have changed places; its bytes are edited by hand."""
    profile = bytearray(
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    )
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(profile)


def test_a_colour_profile_is_applied():
    content = file_of(Image.fromarray(RGB), "PNG", icc_profile=swapped_profile())
    image = decode(content)
    assert np.abs(image.astype(int) - RGB[..., ::-1]).max() <= 1
    assert np.abs(image.astype(int) - RGB).max() > 50  # control
    # Under alpha too; the background is sRGB already.
    rgba = Image.fromarray(np.dstack([RGB, ALPHA]))
    image = decode(file_of(rgba, "PNG", icc_profile=swapped_profile()), background=BLUE)
    assert np.abs(image - over(RGB[..., ::-1], ALPHA, BLUE)).max() <= 2


def grey_profile():
    """A profile of grey with gamma 1.8, made by hand."""
    curve = b"curv" + bytes(4) + struct.pack(">IHxx", 1, round(1.8 * 256))
    white = b"XYZ " + bytes(4) + struct.pack(">iii", 63190, 65536, 54061)
    tags = struct.pack(">I4sII4sII", 2, b"kTRC", 156, 16, b"wtpt", 172, 20)
    header = struct.pack(
        ">I4sI4s4s4s12s4s28siii48x",
        *(192, b"lcms", 0x02400000, b"mntr", b"GRAY", b"XYZ ", bytes(12), b"acsp"),
        *(bytes(28), 63190, 65536, 54061),
    )
    return header + tags + curve + white


def test_a_profile_of_grey():
    light = (GREY / 255) ** 1.8
    # The curve of sRGB, IEC 61966-2-1.
    curve = np.where(
        light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055
    )
    for pixels in (GREY, np.dstack([GREY, np.full_like(GREY, 255)])):
        content = file_of(Image.fromarray(pixels), "PNG", icc_profile=grey_profile())
        image = decode(content)
        assert np.abs(image - three(np.rint(curve * 255)).astype(float)).max() <= 2
    assert np.abs(image.astype(int) - three(GREY)).max() > 10  # control


def test_profiles_that_do_not_fit_are_ignored():
    for profile in (b"nonsense", swapped_profile()[:200]):
        content = file_of(Image.fromarray(RGB), "PNG", icc_profile=profile)
        np.testing.assert_array_equal(decode(content), RGB)
    content = file_of(Image.fromarray(GREY), "PNG", icc_profile=swapped_profile())
    np.testing.assert_array_equal(decode(content), three(GREY))


def test_lab_is_converted():
    lab = np.zeros((5, 7, 3), np.uint8)
    lab[..., 0] = 255  # white: L = 100, a = b = 0
    content = file_of(Image.fromarray(lab, mode="LAB"), "TIFF")
    assert decode(content).min() >= 254


# -- Broken files --------------------------------------------------------------------


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_files_that_are_cut_off(file_format):
    noise = RNG.integers(0, 256, (64, 64, 3), np.uint8)
    content = file_of(Image.fromarray(noise), file_format)
    for length in (0, 5, len(content) // 2):
        with pytest.raises(BrokenPicture, match="picture row 17 must be a whole file"):
            decode_picture(content[:length], name="row 17")


def test_every_kind_of_damage_is_a_broken_picture():
    """Bytes changed at random: a picture, or the one error; never another one."""
    noise = RNG.integers(0, 256, (24, 24, 3), np.uint8)
    messages = []
    for file_format in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM"):
        content = file_of(Image.fromarray(noise), file_format)
        for _ in range(60):
            damaged = bytearray(content)
            for place in RNG.integers(0, min(len(damaged), 200), 4):
                damaged[place] = RNG.integers(256)
            try:
                decode_picture(bytes(damaged), name="p")
            except BrokenPicture as error:
                messages.append(str(error))
    assert len(messages) > 100
    assert not any("\n" in message for message in messages)


def test_other_files_and_missing_ones(tmp_path):
    (tmp_path / "page.jpg").write_text("<html>404 Not Found</html>")
    for read in (decode_picture, read_size):
        with pytest.raises(
            BrokenPicture, match="got: no such format; replace or remove"
        ):
            read(tmp_path / "page.jpg", name="page.jpg")
        with pytest.raises(UserError, match="picture x .* No such file or directory"):
            read(tmp_path / "missing.png", name="x")
    (tmp_path / "drawing.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9"
    )
    with pytest.raises(BrokenPicture, match="no such format"):
        decode_picture(tmp_path / "drawing.png", name="drawing")


def large_bmp(side):
    """A file of a few bytes whose header says that it has side x side pixels."""
    content = bytearray(file_of(Image.fromarray(RGB), "BMP"))
    content[18:26] = np.array([side, side], "<i4").tobytes()
    return bytes(content)


def test_pictures_that_would_fill_the_memory_are_refused():
    for side in (13_378, 1_000_000):
        for read in (decode_picture, read_size):
            with pytest.raises(BrokenPicture, match="at most 178,956,970 pixels"):
                read(large_bmp(side), name="p")


def test_large_pictures_are_read_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_size(large_bmp(13_377), name="p") == (13_377, 13_377)


def test_a_path_gives_what_its_bytes_give(tmp_path):
    (tmp_path / "a").write_bytes(file_of(Image.fromarray(RGB), "PNG"))
    np.testing.assert_array_equal(decode(tmp_path / "a"), RGB)
    np.testing.assert_array_equal(decode(str(tmp_path / "a")), RGB)
