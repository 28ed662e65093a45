"""The API of finetune-operator: what the operator, the trainer and the command line agree on.

Imports neither kopf nor torch. Read in this order: `location`, `pods`, `spec`, `status`, `finetunejob`, then `contract`
(what the operator and the trainer hand each other) and `effective` (how absent fields become decided ones).
"""

__version__ = "0.1.0"
"""The same as in pyproject.toml: images hold the code without the distribution's metadata."""

GROUP = "finetune.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "FineTuneJob"
PLURAL = "finetunejobs"
