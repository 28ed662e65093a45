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


class StatusModel(ApiModel):
    """A part of a status. Fields of another version are kept, so that writing it back loses none of them."""

    model_config = ApiModel.model_config | {"extra": "allow"}


def known_fields(annotation: Any, value: Any) -> Any:
    """`value` without the fields that the models in `annotation` do not have."""
    if isinstance(value, list):
        return [known_fields(annotation, item) for item in value]
    model = _model_in(annotation)
    if model is None or not isinstance(value, dict):
        return value
    fields = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
    return {name: known_fields(fields[name], item) for name, item in value.items() if name in fields}


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    models = (_model_in(argument) for argument in getattr(annotation, "__args__", ()))
    return next((model for model in models if model is not None), None)


def schema(**keywords: Any) -> dict[str, Any]:
    """Keywords that `crdgen` copies into the structural schema as they stand (x-kubernetes-*, format ...)."""
    return keywords


DNS_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"

ObjectName = Annotated[str, Field(pattern=DNS_SUBDOMAIN, max_length=253)]
"""The name of a Kubernetes object in the job's own namespace."""

Int64 = Annotated[int, Field(json_schema_extra=schema(format="int64"))]
PreservedObject = Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]
"""A Kubernetes type that is passed through as it is; the API server checks it when the Job is created."""
