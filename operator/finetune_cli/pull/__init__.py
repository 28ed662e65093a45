"""`ftj pull`: a completed job's artifacts, from the output claim to a folder on this machine."""

from finetune_cli.pull.command import pull_artifacts

__all__ = ["pull_artifacts"]
