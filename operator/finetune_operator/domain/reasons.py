"""The words of conditions, events and failures: those of the API."""

from finetune_api.failures import FailureCode as Code
from finetune_api.reasons import Reason

__all__ = ["Code", "Reason"]
