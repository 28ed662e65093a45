"""The API of finetune-operator: what the operator, the trainer and the command line agree on.

Imports neither kopf nor torch. Read in this order: `location`, `pods`, `spec`, `status`, `finetunejob`, then `contract`
(what the operator and the trainer hand each other) and `effective` (how absent fields become decided ones).
"""

GROUP = "finetune.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "FineTuneJob"
PLURAL = "finetunejobs"
