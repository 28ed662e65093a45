"""Whether this image can build what torch.compile writes. Prepare asks before a GPU is held, so nothing here imports torch."""

from __future__ import annotations

import os
import shutil

from finetune_trainer.errors import BadInput

_COMPILERS = {"cpu": ("C++", "CXX", ("c++", "g++", "clang++")), "cuda": ("C", "CC", ("cc", "gcc", "clang"))}


def check_compiler(device: str) -> None:
    """Raises BadInput (InvalidSpec) when there is no compiler for `device` (cpu or cuda)."""
    language, variable, names = _COMPILERS[device]
    if not any(shutil.which(name) for name in (os.environ.get(variable, ""), *names) if name):
        raise BadInput(
            f"spec.training.compile: this image has no {language} compiler, which torch.compile needs on {device}",
            code="InvalidSpec",
            remedy="remove training.compile, or take an image with a compiler",
        )
