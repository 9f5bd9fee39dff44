"""One place opens images: only documented formats, bounded in size, of pixels whose white is known."""

import ast
import os
import re
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fish_lightning
from fish_lightning.data.decoding import MAX_PIXELS, UnreadableImage, decode, opened
from fish_lightning.data.inspection import image_facts
from fish_lightning.resume.signals import Stopped

RAMP = np.linspace(0, 1, 48).reshape(6, 8)


def png_header(width, height):
    """Return a PNG of a few bytes that says to be of any size."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(9)))]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def test_images_are_opened_in_one_place():
    package = Path(fish_lightning.__file__).parent
    opening = {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("Image.open", "imread"))
    }
    assert opening == {"data/decoding.py"}


def test_postscript_named_jpg_does_not_start_ghostscript(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("a program was started"))
    file = tmp_path / "a.jpg"
    file.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
    message = f"{file}: not an image (PNG, JPEG, WebP, BMP or TIFF)"
    with pytest.raises(UnreadableImage, match=re.escape(message)):
        decode(file)
    assert image_facts(file).error == message.removeprefix(f"{file}: ")


@pytest.mark.parametrize("suffix", ["gif", "ppm", "ico", "tga", "pcx", "eps"])
def test_other_formats_are_refused_whatever_their_name(tmp_path, suffix):
    Image.new("RGB", (8, 8)).save(tmp_path / f"a.{suffix}")
    file = (tmp_path / f"a.{suffix}").rename(tmp_path / "a.png")
    with pytest.raises(UnreadableImage, match=r"not an image \(PNG, JPEG, WebP, BMP or TIFF\)"):
        decode(file)


@pytest.mark.parametrize("side", [15_000, 60_000])  # Pillow warns of the one, and refuses the other itself
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path, side):
    (tmp_path / "a.png").write_bytes(png_header(side, side))
    assert side * side > MAX_PIXELS
    with pytest.raises(UnreadableImage, match=r"a\.png: .*more than 200 million pixels"):
        decode(tmp_path / "a.png")


def test_a_signal_while_an_image_is_decoded_is_no_fault_of_the_image(tmp_path, make_image, monkeypatch):
    def interrupted(*_, **__):
        raise Stopped("stopped by SIGINT immediately", 2)

    file = make_image(tmp_path / "a.png", (1, 2, 3), 0)
    monkeypatch.setattr(Image, "open", interrupted)
    with pytest.raises(Stopped):
        decode(file)


def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(UnreadableImage, match=r"x\.png: not a regular file"):
        decode(tmp_path / "x.png")  # it would wait for a writer


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_16_bits_are_scaled_from_their_white(tmp_path, suffix):
    Image.fromarray((RAMP * 65535).astype(np.uint16)).save(tmp_path / f"a.{suffix}")
    assert np.array_equal(
        decode(tmp_path / f"a.{suffix}")[..., 0], ((RAMP * 65535).astype(np.uint16) / 257).astype("u1")
    )


@pytest.mark.parametrize(
    ("pixels", "fault"),
    [
        (RAMP.astype(np.float32), "floating-point"),
        ((RAMP * 2e9).astype(np.int32), "32-bit"),
        ((RAMP * 255).astype(np.int32), "32-bit"),
    ],
)
def test_pixels_without_a_defined_white_are_refused_by_name(tmp_path, pixels, fault):
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with pytest.raises(
        UnreadableImage, match=rf"a\.tif: {fault} pixels, whose white level is undefined: convert it to 8"
    ):
        decode(tmp_path / "a.tif")


def test_whatever_fails_in_use_names_the_file(tmp_path, make_image):
    file = make_image(tmp_path / "a.png", (90, 90, 90), 1)
    with pytest.raises(UnreadableImage, match=r"a\.png: cannot be read \(no such thing\)"), opened(file):
        raise ValueError("no such thing")
    with pytest.raises(UnreadableImage, match=r"gone\.png: cannot be read \(No such file or directory\)"):
        decode(tmp_path / "gone.png")
