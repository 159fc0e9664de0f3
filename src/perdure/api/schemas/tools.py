"""Schemas of tools and of the rules about using them (api-surface §7, Tools, Tool rules)."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from perdure.domain.records import DEFAULT_RETURN_LIMIT

ReturnLimit = Annotated[int, Field(ge=1, le=1_000_000)]


class Requirement(BaseModel):
    """A package that a tool needs."""

    name: Annotated[str, Field(min_length=1)]
    version: str | None = None


class ToolCreate(BaseModel):
    """A new tool, made from a function's source; or the new state of the tool of that name."""

    source_code: str
    source_type: str | None = None
    description: str | None = None
    json_schema: dict[str, Any] | None = None
    args_json_schema: dict[str, Any] | None = None
    tags: list[str] | None = None
    return_char_limit: ReturnLimit = DEFAULT_RETURN_LIMIT
    default_requires_approval: bool | None = None
    enable_parallel_execution: bool | None = False
    pip_requirements: list[Requirement] | None = None
    npm_requirements: list[Requirement] | None = None


class ToolUpdate(BaseModel):
    """A change of a tool: only the fields that are sent; null clears what may be empty and leaves the rest alone."""

    source_code: str | None = None
    source_type: str | None = None
    description: str | None = None
    json_schema: dict[str, Any] | None = None
    args_json_schema: dict[str, Any] | None = None
    tags: list[str] | None = None
    return_char_limit: ReturnLimit | None = None
    default_requires_approval: bool | None = None
    enable_parallel_execution: bool | None = None
    pip_requirements: list[Requirement] | None = None
    npm_requirements: list[Requirement] | None = None
    metadata_: dict[str, Any] | None = None


class Tool(BaseModel):
    """Something an agent can call."""

    id: str
    name: str
    tool_type: str
    description: str | None
    source_type: str | None
    source_code: str | None
    json_schema: dict[str, Any] | None
    args_json_schema: dict[str, Any] | None
    tags: list[str]
    return_char_limit: int
    default_requires_approval: bool | None
    enable_parallel_execution: bool | None
    pip_requirements: list[Requirement] | None
    npm_requirements: list[Requirement] | None
    metadata_: dict[str, Any] | None
    project_id: str | None
    created_by_id: str | None
    last_updated_by_id: str | None


class Rule(BaseModel):
    """What all rules have."""

    tool_name: Annotated[str, Field(min_length=1)]
    prompt_template: str | None = None


class ToolCallNode(BaseModel):
    """A child tool with arguments that are filled in for it."""

    name: str
    args: dict[str, Any] | None = None


class ChildToolRule(Rule):
    """Right after the tool only the children."""

    type: Literal["constrain_child_tools"]
    children: list[str]
    child_arg_nodes: list[ToolCallNode] | None = None


class InitToolRule(Rule):
    """The tool comes first."""

    type: Literal["run_first"]
    args: dict[str, Any] | None = None


class TerminalToolRule(Rule):
    """The tool ends the turn."""

    type: Literal["exit_loop"]


class ConditionalToolRule(Rule):
    """The tool's result decides what may come next."""

    type: Literal["conditional"]
    child_output_mapping: dict[str, str]
    default_child: str | None = None
    require_output_mapping: bool = False


class ContinueToolRule(Rule):
    """After the tool there is always another step."""

    type: Literal["continue_loop"]


class RequiredBeforeExitToolRule(Rule):
    """The turn may not end without the tool."""

    type: Literal["required_before_exit"]


class MaxCountPerStepToolRule(Rule):
    """The tool may be used so many times in a request."""

    type: Literal["max_count_per_step"]
    max_count_limit: Annotated[int, Field(ge=1)]


class ParentToolRule(Rule):
    """The children only right after the tool."""

    type: Literal["parent_last_tool"]
    children: list[str]


class RequiresApprovalToolRule(Rule):
    """The tool waits for a person's word."""

    type: Literal["requires_approval"]


ToolRule = Annotated[
    ChildToolRule
    | InitToolRule
    | TerminalToolRule
    | ConditionalToolRule
    | ContinueToolRule
    | RequiredBeforeExitToolRule
    | MaxCountPerStepToolRule
    | ParentToolRule
    | RequiresApprovalToolRule,
    Field(discriminator="type"),
]


class ApprovalRequirement(BaseModel):
    """Whether calls of a tool wait for approval."""

    requires_approval: bool
