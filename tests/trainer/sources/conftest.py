"""The workspace of the quick tests of sources."""

from tests.unit.conftest import _no_fsync
from tests.unit.sources.conftest import _plain_machine, workspace

__all__ = ["_no_fsync", "_plain_machine", "workspace"]
