"""The base of every API model: camelCase outside, snake_case inside, unknown fields refused."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class ApiModel(BaseModel):
    """A part of an API object. `wire()` gives the JSON that Kubernetes sees: camelCase, absent fields left out."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        extra="forbid",
        ser_json_inf_nan="null",
    )

    def wire(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def schema(**keywords: Any) -> dict[str, Any]:
    """Keywords that `crdgen` copies into the structural schema as they stand (x-kubernetes-*, format ...)."""
    return keywords


DNS_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"

ObjectName = Annotated[str, Field(pattern=DNS_SUBDOMAIN, max_length=253)]
"""The name of a Kubernetes object in the job's own namespace."""

Int64 = Annotated[int, Field(json_schema_extra=schema(format="int64"))]
PreservedObject = Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]
"""A Kubernetes type that is passed through as it is; the API server checks it when the Job is created."""
