"""The workspace of the quick tests of sources."""

from tests.unit.sources.conftest import _plain_machine, workspace

__all__ = ["_plain_machine", "workspace"]
