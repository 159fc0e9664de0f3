"""Values as the database keeps them: records as JSON text, moments as whole microseconds, text it can hold.

PostgreSQL's text cannot hold U+0000 and neither database can hold half a surrogate pair. JSON bodies keep the first
as an escape; in plain columns it is dropped.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

_ENCODER = msgspec.json.Encoder()
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def encode(record: msgspec.Struct) -> str:
    """A record as JSON text."""
    try:
        return _ENCODER.encode(record).decode()
    except UnicodeEncodeError:
        return _ENCODER.encode(_mended(msgspec.to_builtins(record))).decode()


def _mended(value: Any) -> Any:
    """The same data with lone surrogates replaced by question marks."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_mended(key): _mended(item) for key, item in value.items()}
    return [_mended(item) for item in value] if isinstance(value, list | tuple) else value


def plain(text: str) -> str:
    """Text that both databases can hold in a plain column."""
    if text.isascii():
        return text.replace("\0", "") if "\0" in text else text
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def text_of_request(request: bytes) -> str:
    """A request as it is kept and compared."""
    return plain(request.decode(errors="replace"))


def text_or_none(value: Any) -> str | None:
    """A value that was stored only to be echoed, if it is text that can stand in a column."""
    return value if isinstance(value, str) else None


def micros(moment: datetime) -> int:
    """Microseconds since 1970, exactly. A naive moment is taken as UTC."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // _MICROSECOND


def moment(microseconds: int) -> datetime:
    """The moment, aware, in UTC."""
    return _EPOCH + timedelta(microseconds=microseconds)
