"""`ftj validate`: manifests and data, checked on this machine by the code that checks them on a cluster."""

from finetune_cli.validate.command import ValidateOptions, validate

__all__ = ["ValidateOptions", "validate"]
