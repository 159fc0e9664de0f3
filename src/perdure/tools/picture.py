"""Pictures as bytes and as `data:` URLs (spec §2, image part). Pure; `egress` fetches the others.

A picture is what its first bytes say: a declared type that differs would be refused by every model.
"""

import base64

from perdure.domain.errors import Invalid
from perdure.domain.ids import new_id
from perdure.domain.messages import Image

LARGEST = 20_000_000
"""Bytes of a picture."""
WHITESPACE = b" \t\r\n\f"
ESCAPES = {"%2B": "+", "%2F": "/", "%3D": "=", "%0A": "", "%0D": "", "%20": ""}


def media_type(body: bytes) -> str | None:
    """The media type that the first bytes show; None if it is no picture that models take."""
    if body.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if body.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if body.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if body.startswith(b"RIFF") and body[8:12] == b"WEBP":
        return "image/webp"
    return None


def picture(body: bytes, source: str) -> Image:
    """An image part with a new file id. Raises Invalid, naming the source, if the bytes are no picture."""
    if len(body) > LARGEST:
        raise Invalid(f"{source} has {len(body)} bytes; a picture may have {LARGEST}.")
    kind = media_type(body)
    if kind is None:
        raise Invalid(f"{source} is no picture: it must be PNG, JPEG, GIF or WebP.")
    return Image(media_type=kind, data=base64.b64encode(body).decode(), file_id=new_id("file"))


def from_data_url(url: str) -> Image:
    """The picture in a `data:image/…;base64,…` URL. Raises Invalid saying what is wrong with it."""
    if len(url) > 2 * LARGEST:  # base64 makes 4 characters of 3 bytes; the rest is room for escapes
        raise Invalid(f"The data URL is too long: a picture may have {LARGEST} bytes.")
    head, comma, data = url.partition(",")
    kind, *options = [part.strip().lower() for part in head.removeprefix(head[:5]).split(";")]
    if not comma or not kind.startswith("image/") or "base64" not in options:
        raise Invalid("The data URL is not of the form data:image/png;base64,… .")
    try:
        raw = _unescaped(data).encode("ascii").translate(None, WHITESPACE)
        body = base64.b64decode(raw + b"=" * (-len(raw) % 4), validate=True)
    except ValueError:  # not ASCII, or not base64
        raise Invalid("The data URL does not hold valid base64.") from None
    return picture(body, "The data URL")


def _unescaped(data: str) -> str:
    """Base64 whose signs are written as escapes. Splitting at each % as usual would cost gigabytes on hostile input."""
    for escape, sign in ESCAPES.items() if "%" in data else ():
        data = data.replace(escape, sign).replace(escape.lower(), sign)
    return data
