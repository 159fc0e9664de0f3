"""Schemas of runs and steps (api-surface §7, Runs, steps)."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel

from perdure.domain.events import STOP_REASONS

RunStatus = Literal["created", "running", "completed", "failed", "cancelled"]
StopReasonType = Literal[STOP_REASONS]  # type: ignore[valid-type]  # one list serves the schema and the loop


class RequestConfig(BaseModel):
    """How the request wanted its messages shown."""

    use_assistant_message: bool
    assistant_message_tool_name: str
    assistant_message_tool_kwarg: str
    include_return_message_types: list[str] | None


class Run(BaseModel):
    """One request and what became of it."""

    id: str
    agent_id: str
    status: RunStatus
    created_at: datetime
    completed_at: datetime | None
    stop_reason: StopReasonType | None
    background: bool | None
    conversation_id: str | None
    metadata: dict[str, Any] | None
    request_config: RequestConfig | None
    callback_url: str | None
    callback_sent_at: datetime | None
    callback_status_code: int | None
    callback_error: str | None
    ttft_ns: int | None
    total_duration_ns: int | None
    base_template_id: str | None


class PromptTokensDetails(BaseModel):
    """What the provider's cache did."""

    cached_tokens: int | None
    cache_read_tokens: int | None
    cache_creation_tokens: int | None


class CompletionTokensDetails(BaseModel):
    """Tokens spent on thinking."""

    reasoning_tokens: int | None


class RunUsage(BaseModel):
    """Tokens of a run, summed over its steps."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None
    completion_tokens_details: CompletionTokensDetails | None


class RunMetrics(BaseModel):
    """How long a run took and what it used."""

    id: str
    agent_id: str
    run_start_ns: int
    run_ns: int | None
    num_steps: int
    tools_used: list[str]
    organization_id: str | None
    project_id: str | None
    template_id: str | None
    base_template_id: str | None


class Step(BaseModel):
    """One model call plus the tools it triggered."""

    id: str
    run_id: str | None
    agent_id: str | None
    status: Literal["pending", "success", "failed", "cancelled"] | None
    stop_reason: StopReasonType | None
    provider_id: str | None
    provider_name: str | None
    provider_category: str | None
    model: str | None
    model_handle: str | None
    model_endpoint: str | None
    context_window_limit: int | None
    prompt_tokens: int | None
    completion_tokens: int | None
    total_tokens: int | None
    cached_input_tokens: int | None
    cache_write_tokens: int | None
    reasoning_tokens: int | None
    prompt_tokens_details: dict[str, Any] | None
    completion_tokens_details: dict[str, Any] | None
    error_type: str | None
    error_data: dict[str, Any] | None
    feedback: Literal["positive", "negative"] | None
    tags: list[str]
    messages: list[dict[str, Any]]
    origin: str | None
    project_id: str | None
    request_id: str | None
    tid: str | None
    trace_id: str | None


class StepMetrics(BaseModel):
    """How long a step took."""

    id: str
    run_id: str | None
    agent_id: str | None
    provider_id: str | None
    project_id: str | None
    template_id: str | None
    base_template_id: str | None
    step_start_ns: int | None
    step_ns: int | None
    llm_request_start_ns: int | None
    llm_request_ns: int | None
    tool_execution_ns: int | None


class FeedbackRequest(BaseModel):
    """What somebody thinks of a step; null takes it back."""

    feedback: Literal["positive", "negative"] | None = None
    tags: list[str] | None = None
