"""Mends data on request (`data.fixes`), never silently and never in the originals: mended copies, each with a manifest.

What changes or drops single rows is done in files, before anything else reads them (`apply`). Three fixes need what is only
known later, and are recorded by `completed`: DropInvalid lifts the bound on rows that cannot be used, Truncate sets
`overlong: truncate` (both by `settled`), and Rebalance copies rows of the training split (`rebalance.copies`), so that no
copy is ever measured on.
"""

from finetune_trainer.fixes.apply import Fixed, apply
from finetune_trainer.fixes.beside import publish
from finetune_trainer.fixes.later import completed, settled
from finetune_trainer.fixes.mended import read_rows

__all__ = ["Fixed", "apply", "completed", "publish", "read_rows", "settled"]
