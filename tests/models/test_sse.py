"""Server-sent events: what comes out does not depend on how the bytes were cut."""

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.domain.errors import ModelError
from perdure.models.sse import Splitter

STREAM = (
    b": welcome\n\n"
    b"data: {\"a\": 1}\n\n"
    b"event: ping\r\ndata:no blank after the colon\r\n\r\n"
    b"id: 7\ndata: first line\ndata: second line\n\n"
    b"data: \xc3\xa4\xf0\x9f\x99\x82\r\n\n"
    b"retry: 10\n\n"
    b"data:  two blanks\n\n"
    b"database: no field of ours\n\n"
    b"data: [DONE]"
)  # fmt: skip
EVENTS = [
    b'{"a": 1}',
    b"no blank after the colon",
    b"first line\nsecond line",
    b"\xc3\xa4\xf0\x9f\x99\x82",
    b" two blanks",
    b"[DONE]",
]


def split(chunks: list[bytes], splitter: Splitter | None = None) -> list[bytes]:
    splitter = splitter or Splitter()
    return [data for chunk in chunks for data in splitter.feed(chunk)] + list(splitter.close())


def test_reads_what_servers_send() -> None:
    """Comments and other fields are passed over, lines of one event are joined, the last needs no blank line."""
    assert split([STREAM]) == EVENTS


@given(st.lists(st.integers(0, len(STREAM))))
def test_cuts_do_not_matter(cuts: list[int]) -> None:
    """The same events come out wherever the network cuts the bytes, even within a line end or a character."""
    points = [0, *sorted(cuts), len(STREAM)]
    assert split([STREAM[a:b] for a, b in pairwise(points)]) == EVENTS


@given(st.binary())
def test_takes_any_bytes(noise: bytes) -> None:
    """Bytes that are no events give some events or none, and no error."""
    assert split([noise]) == split([noise[i : i + 1] for i in range(len(noise))])


def test_gives_an_event_as_soon_as_it_is_complete() -> None:
    """Nobody waits for the next event to see this one."""
    splitter = Splitter()
    assert list(splitter.feed(b"data: a\n")) == []
    assert list(splitter.feed(b"\ndata: b")) == [b"a"]


@pytest.mark.parametrize(
    "chunks",
    [[b"data: 12345678\n\n"], [b"data: 1", b"2345", b"678"], [b"data: 1234\ndata: 5678\n\n"], [b"data:\n"] * 9],
    ids=["one chunk", "several chunks", "several lines", "empty lines"],
)
def test_refuses_an_event_over_the_limit(chunks: list[bytes]) -> None:
    """An event that outgrows its limit ends the answer before it fills the memory."""
    with pytest.raises(ModelError, match="an event of more than 12 bytes"):
        split(chunks, Splitter(limit=12))


def test_refuses_a_line_without_end() -> None:
    """Nor does a line have to end before it is too long."""
    splitter = Splitter(limit=12)
    assert list(splitter.feed(b"data: 123456")) == []
    with pytest.raises(ModelError, match="an event of more than 12 bytes"):
        list(splitter.feed(b"7"))


def test_refuses_a_stream_without_end() -> None:
    """Small events, or comments, that never stop are an answer without end."""
    splitter = Splitter(total=100)
    assert len([data for _ in range(10) for data in splitter.feed(b"data: a\n\n\n")]) == 10
    with pytest.raises(ModelError, match="did not end within 100 bytes"):
        list(splitter.feed(b":"))


def test_forgets_an_event_that_was_given() -> None:
    """The limit counts for each event, not for all of them together."""
    assert split([b"data: 123\n\n"] * 1000, Splitter(limit=12)) == [b"123"] * 1000


def test_a_long_line_in_small_pieces_costs_no_more_than_its_length() -> None:
    """Sixteen megabytes that come a kilobyte at a time do not stop the server (quadratic copying took minutes)."""
    splitter, began = Splitter(), time.process_time()
    for _ in range(15 * 2**10):
        assert list(splitter.feed(b"x" * 2**10)) == []
    assert time.process_time() - began < 2
