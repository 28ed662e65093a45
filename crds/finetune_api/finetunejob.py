"""The kind FineTuneJob."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal

from pydantic import Field

from finetune_api import API_VERSION, KIND
from finetune_api.base import ApiModel
from finetune_api.rules import Rule, Ruled
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus

NAME_PATTERN = r"^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$"


class Metadata(ApiModel):
    """The parts of ObjectMeta that we read; anything else is kept out of sight."""

    model_config = ApiModel.model_config | {"extra": "ignore"}

    name: str = Field(default="", max_length=253)
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class FineTuneJob(ApiModel, Ruled):
    """One fine-tuning: checked, planned, trained, measured and published."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"self.metadata.name.matches('{NAME_PATTERN}')",
            "metadata.name must be 1 to 40 lower-case letters, digits and '-', begin with a letter and not end with '-': pods are named after it",
            lambda self: re.match(NAME_PATTERN, self.metadata.name) is not None,
        ),
    )

    api_version: Literal["finetune.dev/v1alpha1"] = API_VERSION  # type: ignore[assignment]
    kind: Literal["FineTuneJob"] = KIND  # type: ignore[assignment]
    metadata: Metadata
    spec: FineTuneJobSpec
    status: FineTuneJobStatus = Field(default_factory=FineTuneJobStatus)

    @classmethod
    def parse(cls, body: dict[str, Any]) -> FineTuneJob:
        """Raises pydantic.ValidationError; `errors.sentences` turns it into what a user is told."""
        return cls.model_validate(body)
