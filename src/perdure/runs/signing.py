"""How callbacks are signed: the scheme of Standard Webhooks, and the secret that is made if the operator sets none.

Pure but for `kept`, which reads or makes the file of the secret. docs/callbacks.md shows the receiver's side.
"""

import base64
import binascii
import hashlib
import hmac
import os
import secrets
from datetime import datetime
from pathlib import Path

from perdure.domain.errors import Invalid, Unavailable

MARK = "whsec_"
"""What the standard's own form of a secret begins with; base64 follows."""
SHORTEST = 16
MADE = 32
"""Bytes of a key: the fewest that are accepted, and what we make ourselves."""


def key_of(secret: str) -> bytes:
    """The key behind a secret: `whsec_` and base64, or any other text, which is taken as it is.

    Raises Invalid for one that is damaged or too short to keep anybody from guessing it.
    """
    key = _decoded(secret.removeprefix(MARK)) if secret.startswith(MARK) else secret.encode()
    if len(key) < SHORTEST:
        raise Invalid(f"The secret is shorter than {SHORTEST} bytes. Take a random one: openssl rand -base64 32.")
    return key


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Invalid(f"After {MARK} there must be base64, and this is none. Copy the secret anew.") from None


def signed(key: bytes, message_id: str, at: datetime, body: bytes) -> dict[str, str]:
    """The headers that tell a receiver who sent this, when, and which message it is. The id must hold no full stop."""
    seconds = str(int(at.timestamp()))
    digest = hmac.new(key, b".".join((message_id.encode(), seconds.encode(), body)), hashlib.sha256).digest()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": seconds,
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def kept(path: Path) -> str:
    """The secret in this file, which is made, for its owner's eyes only, if there is none.

    Two that make it at once end with the same secret. Raises Unavailable if it can be neither read nor made.
    """
    try:
        if not path.exists():
            _make(path)
        secret = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise Unavailable(f"{path} cannot be read or made: {getattr(error, 'strerror', None) or error}") from error
    if not secret.startswith(MARK):
        raise Unavailable(f"{path} is damaged. Remove it to have a new secret made, and tell the receivers.")
    return secret


def _make(path: Path) -> None:
    """Appears whole or not at all, whenever the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(MARK + base64.b64encode(secrets.token_bytes(MADE)).decode() + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            pass  # another process was faster: its secret counts
        except OSError:
            draft.replace(path)  # the file system has no links
    finally:
        draft.unlink(missing_ok=True)
