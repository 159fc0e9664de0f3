"""What went wrong at a provider, as our errors: one table for every dialect (behaviour spec §1.7, §3.4)."""

import re
from typing import Any

import msgspec

from perdure.domain.errors import (
    ContextOverflow,
    ModelAuthentication,
    ModelBadRequest,
    ModelError,
    ModelOutOfCredits,
    ModelOverloaded,
    ModelRateLimited,
    ModelTimeout,
)

MAX_DETAIL = 2_000
MAX_CODE = 100
RETRIABLE = (429, 500, 502, 503, 504, 529)

OVERFLOW = re.compile(
    r"context_length_exceeded|maximum context length|context (length|window|size)|prompt is too long"
    r"|too many tokens|exceeds? the (available|model'?s?) context|input is too long|input length .* exceed",
    re.IGNORECASE,
)
"""How OpenAI, vLLM, llama.cpp, Ollama, LM Studio, OpenRouter and Anthropic say that the prompt is too long."""
OUT_OF_CREDITS = re.compile(r"insufficient_quota|insufficient (credits|balance|funds)|credit balance", re.IGNORECASE)

STATUS = re.compile(r"[1-5][0-9]{2}")
KINDS = {
    "rate_limit": 429, "too_many_requests": 429, "overloaded": 529, "authentication": 401, "invalid_api_key": 401,
    "invalid_request": 400, "timeout": 504,
}  # fmt: skip
"""What error objects in a stream, which have no status, say instead."""


def fault(status: int, body: bytes, where: str) -> ModelError:
    """The error for an HTTP answer that is none; `where` names the provider for the reader."""
    code, detail = _cause(body)
    kind, advice = _kind(status, f"{code} {detail}")
    return kind(f"{where} answered {status}. {advice}", detail or f"HTTP {status}")


def fault_in_stream(error: Any, where: str) -> ModelError:
    """The error for an error object among the events of a stream."""
    code, detail = _told(error)
    kind, advice = _kind(_status_of(error), f"{code} {detail}")
    return kind(f"{where} broke off with an error. {advice}", detail or "an error without words")


def _kind(status: int, told: str) -> tuple[type[ModelError], str]:
    """The branch of the error tree, and what to do next."""
    if status == 413 or (status in (0, 400, 422, 500) and OVERFLOW.search(told)):
        return ContextOverflow, "The conversation is longer than the model's context window; shorten it or reset it."
    if status == 402 or OUT_OF_CREDITS.search(told):
        return ModelOutOfCredits, "The account there has no credits left; top it up."
    if status in (401, 403):
        return ModelAuthentication, "It refuses the API key; check the key of this provider."
    if status == 429:
        return ModelRateLimited, "It asks for fewer requests; wait a little and send again."
    if status in (408, 504):
        return ModelTimeout, "It took too long; send again, or use a faster model."
    if status in (503, 529):
        return ModelOverloaded, "It is overloaded; wait a little and send again."
    if 300 <= status < 400:
        return ModelError, "It sends callers elsewhere; set the address of this provider to the right place."
    if 400 <= status < 500:
        return ModelBadRequest, "It refuses the request; the detail says why."
    return ModelError, "The fault is on its side; send again later."


def _cause(body: bytes) -> tuple[str, str]:
    """The code and the words in an error body, whatever its form."""
    try:
        decoded = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return "", body.decode("utf-8", "replace")[:MAX_DETAIL].strip()
    return _told((decoded.get("error") or decoded) if isinstance(decoded, dict) else decoded)


def _told(error: Any) -> tuple[str, str]:
    if not isinstance(error, dict):
        return "", _shown(error, MAX_DETAIL)
    words = error.get("message") or error.get("detail") or error.get("error") or ""
    return _shown(error.get("code") or error.get("type") or "", MAX_CODE), _shown(words, MAX_DETAIL)


def _shown(value: Any, limit: int) -> str:
    """The beginning of anything in words; it may be nested, or a number, beyond what can be written out."""
    try:
        return str(value)[:limit]
    except (ValueError, RecursionError):
        return ""


def _status_of(error: Any) -> int:
    """The HTTP status an error object names by number or by kind, 0 if none."""
    if not isinstance(error, dict):
        return 0
    named = [_shown(error.get(key), MAX_CODE) for key in ("status", "code", "type")]
    number = next((int(name) for name in named if STATUS.fullmatch(name)), 0)
    return number or next((status for kind, status in KINDS.items() if any(kind in name for name in named)), 0)
