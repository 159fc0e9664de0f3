"""Pictures: known by their first bytes, also inside `data:` URLs (spec §2)."""

import base64

import pytest

from perdure.domain.errors import Invalid
from perdure.domain.ids import pattern
from perdure.tools.picture import LARGEST, from_data_url, media_type, picture

PNG = b"\x89PNG\r\n\x1a\n" + b"\xfb\xef\xbe" * 3
IN_BASE64 = base64.b64encode(PNG).decode()


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0JFIF", "image/jpeg"),
        (b"GIF89a...", "image/gif"),
        (b"GIF87a...", "image/gif"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "image/webp"),
        (b"RIFF\x10\0\0\0WAVEfmt ", None),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", None),
        (b"<html>", None),
        (b"", None),
    ],
)
def test_the_bytes_say_what_it_is(body, kind):
    assert media_type(body) == kind


def test_a_data_url_is_decoded_in_place():
    image = from_data_url(f"data:image/png;base64,{IN_BASE64}")
    assert (image.media_type, image.data) == ("image/png", IN_BASE64)
    assert pattern("file").match(image.file_id)


@pytest.mark.parametrize(
    "url",
    [
        f"DATA:Image/PNG;BASE64,{IN_BASE64}",
        f"data:image/jpeg;base64,{IN_BASE64}",
        f"data:image/png;charset=x;base64,{IN_BASE64}",
        f"data:image/png;base64,{IN_BASE64.replace('+', '%2B').replace('/', '%2F').replace('=', '%3D')}",
        f"data:image/png;base64,{IN_BASE64[:8]}\n {IN_BASE64[8:]}",
        f"data:image/png;base64,{IN_BASE64.rstrip('=')}",
    ],
)
def test_forms_of_data_urls_that_browsers_take(url):
    """Whatever type is declared, the bytes decide."""
    image = from_data_url(url)
    assert (image.media_type, image.data) == ("image/png", IN_BASE64)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("data:", "not of the form"),
        ("data:image/png;base64", "not of the form"),
        (f"data:text/plain;base64,{IN_BASE64}", "not of the form"),
        ("data:image/png,abc", "not of the form"),
        ("data:image/png;base64,*!", "valid base64"),
        ("data:image/png;base64,A", "valid base64"),
        ("data:image/png;base64,é", "valid base64"),
        ("data:image/png;base64,\ud800", "valid base64"),
        ("data:image/png;base64,", "is no picture: it must be PNG, JPEG, GIF or WebP"),
        ("data:image/svg+xml;base64,PHN2Zy8+", "is no picture"),
        ("data:image/png;base64," + "A" * (2 * LARGEST), "too long"),
        ("data:image/png;base64," + "%" * 30_000_000, "valid base64"),
        ("data:image/png;base64," + "%20a" * 7_000_000, "is no picture"),
        ("data:image/png;base64," + "a " * 15_000_000, "is no picture"),
    ],
    ids=range(14),
)
def test_a_data_url_that_is_no_picture_is_refused(url, words):
    with pytest.raises(Invalid, match=words):
        from_data_url(url)


def test_a_picture_may_have_20_mb():
    assert picture(PNG.ljust(LARGEST, b"x"), "It").media_type == "image/png"
    with pytest.raises(Invalid, match="It has 20000001 bytes; a picture may have 20000000"):
        picture(PNG.ljust(LARGEST + 1, b"x"), "It")
