"""An agent's model configuration: the effective one (`llm`) and the one that is read back (`model_settings`).

Pure functions from what a model offers and what a request says (behaviour spec §1.2, ★S81; api-surface §7, LlmConfig,
Model settings). `llm` has every field of the wire's LlmConfig; settings are stored without their null fields.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from perdure.domain.records import ModelInfo

Config = dict[str, Any]

DEFAULT_TEMPERATURE = 1.0
DEFAULT_EFFORT = "minimal"
REASONER_EFFORT = "medium"
THINKING_BUDGET = 1024
_OPENAI_REASONER = re.compile(r"o\d|gpt-5(?!-chat)")
_TUNING = (
    "temperature", "max_tokens", "frequency_penalty", "enable_reasoner", "reasoning_effort", "max_reasoning_tokens",
    "effort", "verbosity", "parallel_tool_calls", "put_inner_thoughts_in_kwargs", "response_format", "strict",
    "tool_call_parser", "tier", "compatibility_type", "return_logprobs", "top_logprobs", "return_token_ids",
)  # fmt: skip
"""What a request may say in the older llm_config. Endpoints are the provider's own: a caller cannot redirect them."""


class Variant(NamedTuple):
    """One provider's form of settings: its fields beside the shared three, and what a sent object defaults to."""

    fields: tuple[str, ...] = ("response_format",)
    temperature: float = 0.7
    defaults: Mapping[str, Any] = {}


_OPENAI = Variant(
    ("reasoning", "response_format", "strict"), 0.7, {"reasoning": {"reasoning_effort": "high"}, "strict": True}
)
_GOOGLE = Variant(("thinking_config", "response_schema"))
VARIANTS: Mapping[str, Variant] = {
    "openai": _OPENAI,
    "sglang": _OPENAI._replace(fields=(*_OPENAI.fields, "tool_call_parser")),
    "anthropic": Variant(("thinking", "effort", "verbosity", "response_format", "strict"), 1.0, {"strict": False}),
    "google_ai": _GOOGLE,
    "google_vertex": _GOOGLE,
    "azure": Variant(),
    "xai": Variant(),
    "moonshot": Variant(("response_format", "strict"), 1.0),
    "moonshot_coding": Variant(("thinking", "effort", "verbosity", "response_format", "strict"), 1.0),
    "zai": Variant(("thinking", "response_format")),
    "groq": Variant(),
    "deepseek": Variant(),
    "together": Variant(),
    "bedrock": Variant(),
    "baseten": Variant(()),
    "openrouter": Variant(),
    "chatgpt_oauth": Variant(("reasoning",), 0.7, {"reasoning": {"reasoning_effort": "medium"}}),
}
SHARED = ("max_output_tokens", "temperature", "parallel_tool_calls")


class ModelProfile(NamedTuple):
    """What an agent keeps about its model."""

    llm: Config
    settings: Config


def variant_of(provider_type: str | None) -> str:
    """The settings variant of a provider; those without one of their own speak OpenAI's dialect."""
    return provider_type if provider_type is not None and provider_type in VARIANTS else "openai"


def model_profile(info: ModelInfo, wish: Mapping[str, Any]) -> ModelProfile:
    """The configuration for a freshly chosen model.

    `wish` holds the fields of a request that concern the model: llm_config, model_settings, context_window_limit,
    max_tokens, max_reasoning_tokens, parallel_tool_calls, reasoning, enable_reasoner; null means not said.
    """
    llm = base_config(info)
    given = wish.get("llm_config") or {}
    llm |= {key: given[key] for key in _TUNING if given.get(key) is not None}
    if given.get("context_window"):
        llm["context_window"] = given["context_window"]
    return _tuned(llm, {}, variant_of(info.provider_type), wish)


def retuned(llm: Mapping[str, Any], settings: Mapping[str, Any], wish: Mapping[str, Any]) -> ModelProfile:
    """The configuration of the same model after a change."""
    return _tuned(dict(llm), settings, variant_of(settings.get("provider_type")), wish)


def _tuned(llm: Config, settings: Mapping[str, Any], variant: str, wish: Mapping[str, Any]) -> ModelProfile:
    sent = wish.get("model_settings")
    if sent is not None:
        variant = variant_of(sent.get("provider_type") or variant)
        sent = _with_defaults(sent, variant)
        llm |= _as_config(sent)
    llm |= _singles(wish)
    if sent is not None and sent.get("parallel_tool_calls") is not None:
        llm["parallel_tool_calls"] = sent["parallel_tool_calls"]
    elif sent is not None and wish.get("parallel_tool_calls") is None:
        llm["parallel_tool_calls"] = True
    settings = settings_of(llm, variant) | _without_place(sent or settings, variant)
    return ModelProfile(llm, settings)


def _without_place(said: Mapping[str, Any], variant: str) -> Config:
    """What settings say that `llm` has no place for."""
    thinking = said.get("thinking") or {}
    if "thinking" in VARIANTS[variant].fields and thinking.get("clear_thinking") is not None:
        return {"thinking": dict(thinking)}
    return {}


def base_config(info: ModelInfo) -> Config:
    """The LlmConfig of a model that nobody has tuned."""
    reasoner = info.provider_type == "openai" and bool(_OPENAI_REASONER.match(info.name))
    return {
        "model": info.name, "handle": info.handle, "display_name": info.display_name,
        "model_endpoint_type": info.endpoint_type, "model_endpoint": info.endpoint, "model_wrapper": None,
        "provider_name": info.provider_name, "provider_category": "base", "context_window": info.context_window,
        "max_tokens": info.max_output_tokens, "temperature": DEFAULT_TEMPERATURE, "frequency_penalty": None,
        "enable_reasoner": reasoner, "reasoning_effort": REASONER_EFFORT if reasoner else None,
        "max_reasoning_tokens": 0, "effort": None, "verbosity": None, "parallel_tool_calls": False,
        "put_inner_thoughts_in_kwargs": False, "compatibility_type": None, "tier": None, "response_format": None,
        "strict": False, "tool_call_parser": None, "return_logprobs": False, "top_logprobs": None,
        "return_token_ids": False,
    }  # fmt: skip


def settings_of(llm: Mapping[str, Any], variant: str) -> Config:
    """The settings that say the same as `llm`. Parallel calls always read true (★S81)."""
    thinks, budget = bool(llm["enable_reasoner"]), llm["max_reasoning_tokens"] or THINKING_BUDGET
    every = {
        "max_output_tokens": llm["max_tokens"],
        "temperature": llm["temperature"],
        "reasoning": {"reasoning_effort": llm["reasoning_effort"] or DEFAULT_EFFORT},
        "thinking": {"type": "enabled" if thinks else "disabled", "budget_tokens": budget},
        "thinking_config": {"include_thoughts": thinks, "thinking_budget": budget},
        "effort": llm["effort"],
        "verbosity": llm["verbosity"],
        "strict": llm["strict"],
        "response_format": llm["response_format"],
        "response_schema": llm["response_format"],
        "tool_call_parser": llm["tool_call_parser"],
    }
    shown = ("max_output_tokens", "temperature", *VARIANTS[variant].fields)
    settings = {key: every[key] for key in shown if every[key] is not None}
    return {"provider_type": variant, "parallel_tool_calls": True} | settings


def settings_view(settings: Mapping[str, Any]) -> Config | None:
    """Stored settings as the wire shows them, null fields included."""
    if not settings:
        return None
    names = (*SHARED, *VARIANTS[variant_of(settings.get("provider_type"))].fields)
    return dict.fromkeys(names) | dict(settings)


def _with_defaults(sent: Mapping[str, Any], variant: str) -> Config:
    """A sent settings object with what its schema promises for fields left out (api-surface §7).

    Except the output limit: its promise is the same small number for every model, so the model's own stays.
    """
    said = {key: value for key, value in sent.items() if value is not None}
    shape = VARIANTS[variant]
    return {"temperature": shape.temperature, **shape.defaults, **said}


def _as_config(sent: Mapping[str, Any]) -> Config:
    """What a settings object means for `llm`."""
    config: Config = {key: sent[key] for key in ("temperature", "effort", "verbosity", "strict") if key in sent}
    if "max_output_tokens" in sent:
        config["max_tokens"] = sent["max_output_tokens"]
    if "reasoning" in sent:
        config["reasoning_effort"] = sent["reasoning"]["reasoning_effort"]
    if "thinking" in sent:
        config["enable_reasoner"] = sent["thinking"]["type"] == "enabled"
        config["max_reasoning_tokens"] = sent["thinking"]["budget_tokens"]
    if "thinking_config" in sent:
        config["enable_reasoner"] = sent["thinking_config"]["include_thoughts"]
        config["max_reasoning_tokens"] = sent["thinking_config"]["thinking_budget"]
    if "tool_call_parser" in sent:
        config["tool_call_parser"] = sent["tool_call_parser"]
    config["response_format"] = sent.get("response_format") or sent.get("response_schema")
    return config


def _singles(wish: Mapping[str, Any]) -> Config:
    """Top-level fields of a request that stand for single entries of `llm`."""
    names = {
        "context_window_limit": "context_window", "max_tokens": "max_tokens", "reasoning": "enable_reasoner",
        "enable_reasoner": "enable_reasoner", "max_reasoning_tokens": "max_reasoning_tokens",
        "parallel_tool_calls": "parallel_tool_calls",
    }  # fmt: skip
    return {target: wish[name] for name, target in names.items() if wish.get(name) is not None}
