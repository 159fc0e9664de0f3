"""Signatures of callbacks and the secret they are made with."""

import base64
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from perdure.domain.errors import Invalid, Unavailable
from perdure.runs.signing import kept, key_of, signed


def test_the_standards_own_example() -> None:
    """What the libraries of Standard Webhooks are tested with."""
    headers = signed(
        key_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"), "msg_p5jXN8AQM9LWM0D4loKWxJek",
        datetime.fromtimestamp(1614265330, UTC), b'{"test": 2432232314}',
    )  # fmt: skip
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_a_secret_is_base64_behind_its_mark_or_plain_text() -> None:
    """Plain text counts as it is written, whatever it looks like."""
    assert key_of("whsec_" + base64.b64encode(b"sixteen bytes ok").decode()) == b"sixteen bytes ok"
    assert key_of("correct horse battery") == b"correct horse battery"
    assert key_of("schlüsselwörtlich") == "schlüsselwörtlich".encode()


@pytest.mark.parametrize(
    ("secret", "words"),
    [
        ("", "shorter than 16 bytes"),
        ("too short", "shorter than 16 bytes"),
        ("whsec_", "shorter than 16 bytes"),
        ("whsec_c2hvcnQ=", "shorter than 16 bytes"),
        ("whsec_not base64 at all!", "must be base64"),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS", "must be base64"),
    ],
)
def test_a_secret_that_protects_nothing_is_refused(secret: str, words: str) -> None:
    """The words do not repeat the secret."""
    with pytest.raises(Invalid, match=words) as refused:
        key_of(secret)
    assert not secret or secret not in str(refused.value)


def test_a_secret_is_made_once(tmp_path: Path) -> None:
    """For its owner only, in a directory that may have to be made first; nothing else is left there."""
    path = tmp_path / "data" / "callback_secret"
    secret = kept(path)
    assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=", secret)
    assert len(key_of(secret)) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert kept(path) == secret
    assert [file.name for file in path.parent.iterdir()] == ["callback_secret"]
    assert kept(tmp_path / "other") != secret


def test_many_that_make_it_at_once_get_the_same(tmp_path: Path) -> None:
    """Servers that share a data directory."""
    path = tmp_path / "callback_secret"
    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(lambda _: kept(path), range(16)))) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["callback_secret"]


@pytest.mark.parametrize("content", [b"", b"secret", b"\xff\xfe"])
def test_a_damaged_file_is_told_and_not_replaced(tmp_path: Path, content: bytes) -> None:
    """A new secret would be one that no receiver knows."""
    path = tmp_path / "callback_secret"
    path.write_bytes(content)
    with pytest.raises(Unavailable, match="callback_secret"):
        kept(path)
    assert path.read_bytes() == content


def test_no_place_for_a_secret(tmp_path: Path) -> None:
    """The words name the file and the reason."""
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match=r"file/callback_secret cannot be read or made: \w+"):
        kept(tmp_path / "file" / "callback_secret")
