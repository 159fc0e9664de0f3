"""Schemas of models and their settings (api-surface §7, LlmConfig, EmbeddingConfig, Model settings, Model).

`ModelSettings` stands for all variants of the wire's union: a field that a variant lacks is ignored for it.
"""

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field

Effort = Literal["low", "medium", "high", "xhigh", "max"]
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
Verbosity = Literal["low", "medium", "high"]
SettingsProvider = Literal[
    "openai", "sglang", "anthropic", "google_ai", "google_vertex", "azure", "xai", "moonshot", "zai", "moonshot_coding",
    "groq", "deepseek", "together", "bedrock", "baseten", "openrouter", "chatgpt_oauth",
]  # fmt: skip
SETTINGS_PROVIDERS: tuple[str, ...] = get_args(SettingsProvider)
PositiveInt = Annotated[int, Field(ge=1)]
Temperature = Annotated[float, Field(ge=0, le=2)]


class TextResponseFormat(BaseModel):
    """Plain text."""

    type: Literal["text"] = "text"


class JsonObjectResponseFormat(BaseModel):
    """Any JSON object."""

    type: Literal["json_object"] = "json_object"


class JsonSchemaResponseFormat(BaseModel):
    """JSON of a given schema."""

    type: Literal["json_schema"] = "json_schema"
    json_schema: dict[str, Any]


ResponseFormat = Annotated[
    TextResponseFormat | JsonSchemaResponseFormat | JsonObjectResponseFormat, Field(discriminator="type")
]


class Reasoning(BaseModel):
    """How hard an OpenAI-style model thinks."""

    reasoning_effort: ReasoningEffort = "minimal"


class Thinking(BaseModel):
    """Whether and how long an Anthropic-style model thinks."""

    type: Literal["enabled", "disabled"] = "enabled"
    budget_tokens: PositiveInt = 1024
    clear_thinking: bool | None = None


class ThinkingConfig(BaseModel):
    """How a Gemini model thinks."""

    include_thoughts: bool = True
    thinking_budget: int = 1024


class ModelSettings(BaseModel):
    """How the model is asked; `provider_type` names the variant, the agent's own provider if it is left out."""

    provider_type: SettingsProvider | None = None
    max_output_tokens: PositiveInt | None = None
    temperature: Temperature | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    thinking: Thinking | None = None
    thinking_config: ThinkingConfig | None = None
    effort: Effort | None = None
    verbosity: Verbosity | None = None
    strict: bool | None = None
    response_format: ResponseFormat | None = None
    response_schema: ResponseFormat | None = None
    tool_call_parser: str | None = None


class LLMConfig(BaseModel):
    """The older form of a model's configuration; deprecated, and still in every agent."""

    model: str
    context_window: PositiveInt
    model_endpoint_type: str
    model_endpoint: str | None = None
    model_wrapper: str | None = None
    provider_name: str | None = None
    provider_category: str | None = None
    display_name: str | None = None
    handle: str | None = None
    temperature: Temperature = 1.0
    max_tokens: PositiveInt | None = None
    frequency_penalty: float | None = None
    enable_reasoner: bool = True
    reasoning_effort: ReasoningEffort | None = None
    max_reasoning_tokens: int = 0
    effort: Effort | None = None
    verbosity: Verbosity | None = None
    parallel_tool_calls: bool | None = False
    put_inner_thoughts_in_kwargs: bool | None = False
    compatibility_type: Literal["gguf", "mlx"] | None = None
    tier: str | None = None
    response_format: ResponseFormat | None = None
    strict: bool = False
    tool_call_parser: str | None = None
    return_logprobs: bool = False
    top_logprobs: int | None = None
    return_token_ids: bool = False


class EmbeddingConfig(BaseModel):
    """The older form of an embedding model's configuration; deprecated."""

    embedding_model: str
    embedding_endpoint_type: str
    embedding_dim: int
    embedding_endpoint: str | None = None
    embedding_chunk_size: int | None = 300
    batch_size: int = 32
    handle: str | None = None
    azure_endpoint: str | None = None
    azure_version: str | None = None
    azure_deployment: str | None = None


class Model(LLMConfig):
    """A model that a configured provider offers."""

    name: str
    provider_type: str
    max_context_window: int
    model_type: Literal["llm"]


class EmbeddingModel(EmbeddingConfig):
    """An embedding model that a configured provider offers."""

    name: str
    display_name: str
    provider_name: str
    provider_type: str
    model_type: Literal["embedding"]


class CompactionSettings(BaseModel):
    """How a context that grows too long is summarised (behaviour spec §1.7)."""

    model: str | None = None
    model_settings: ModelSettings | None = None
    prompt: str | None = None
    prompt_acknowledgement: bool = False
    clip_chars: PositiveInt | None = 50_000
    mode: Literal["all", "sliding_window", "self_compact_all", "self_compact_sliding_window"] = "sliding_window"
    sliding_window_percentage: Annotated[float, Field(gt=0, lt=1)] = 0.3
