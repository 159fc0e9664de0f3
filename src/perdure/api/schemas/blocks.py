"""Schemas of memory blocks (api-surface §7, Blocks)."""

from typing import Annotated, Any

from pydantic import BaseModel, Field

from perdure.domain.records import DEFAULT_BLOCK_LIMIT

Label = Annotated[
    str, Field(min_length=1, pattern=r"^[^<>/\s\x00-\x1f](?:[^<>\x00-\x1f]*[^<>/\s\x00-\x1f])?$")
]
"""Names an element of the system message and part of a path: no angle brackets, no slash or blank at its ends."""
Limit = Annotated[int, Field(ge=0)]


class CreateBlock(BaseModel):
    """A new block. A value longer than its limit is accepted (★S44)."""

    label: Label
    value: str
    limit: Limit = DEFAULT_BLOCK_LIMIT
    description: str | None = None
    read_only: bool = False
    metadata: dict[str, Any] | None = None
    tags: list[str] | None = None
    hidden: bool | None = None
    is_template: bool = False
    preserve_on_migration: bool | None = False
    project_id: str | None = None
    template_id: str | None = None
    template_name: str | None = None
    base_template_id: str | None = None
    deployment_id: str | None = None
    entity_id: str | None = None


class BlockUpdate(BaseModel):
    """A change of a block: only the fields that are sent; null clears what may be empty and leaves the rest alone."""

    label: Label | None = None
    value: str | None = None
    limit: Limit | None = None
    description: str | None = None
    read_only: bool | None = None
    metadata: dict[str, Any] | None = None
    tags: list[str] | None = None
    hidden: bool | None = None
    is_template: bool | None = None
    preserve_on_migration: bool | None = None
    project_id: str | None = None
    template_id: str | None = None
    template_name: str | None = None
    base_template_id: str | None = None
    deployment_id: str | None = None
    entity_id: str | None = None


class Block(BaseModel):
    """A labelled piece of core memory."""

    id: str
    label: str
    value: str
    limit: int
    description: str | None
    read_only: bool
    metadata: dict[str, Any] | None
    tags: list[str] | None
    hidden: bool | None
    is_template: bool
    preserve_on_migration: bool | None
    project_id: str | None
    template_id: str | None
    template_name: str | None
    base_template_id: str | None
    deployment_id: str | None
    entity_id: str | None
    created_by_id: str | None
    last_updated_by_id: str | None
