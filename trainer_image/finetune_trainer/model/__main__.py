"""`probe` as a process of its own, for `prepare`, which does without torch.

python -m finetune_trainer.model < {"folder", "spec", "purpose", "adapter"}  > {"fused_attention"} or {"code", "message", "remedy"}
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from finetune_api.spec import FineTuneJobSpec

from finetune_trainer import lean
from finetune_trainer.errors import BadInput
from finetune_trainer.model.purpose import Purpose


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    spec, folder = FineTuneJobSpec.model_validate(asked["spec"]), Path(asked["folder"])
    lean.spare_unless_quantised(spec, folder)
    lean.list_models_once()
    from finetune_trainer.model.probe import probe
    from finetune_trainer.model.wrapped import innermost

    try:
        net = probe(folder, spec, Purpose(**asked["purpose"]), Path(asked["adapter"]) if asked["adapter"] else None)
    except BadInput as bad:
        return {"code": bad.cause.code, "message": bad.cause.message, "remedy": bad.cause.remedy}
    return {"fused_attention": getattr(innermost(net), "_supports_sdpa", None)}


if __name__ == "__main__":
    print(json.dumps(answer(json.load(sys.stdin))))
