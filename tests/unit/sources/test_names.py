"""Whatever a server calls its files: what is taken lies inside the download folder, as one file each."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetune_trainer.errors import BadInput
from finetune_trainer.sources import names
from finetune_trainer.sources.refusals import Place
from hypothesis import given
from hypothesis import strategies as st

PLACE = Place("spec.model.uri", "s3://team/base", "https://store", "s3")
PARTS = st.sampled_from(["", ".", "..", "...", "a", "..a", "a\0", "\\..", "~", "%2e%2e", "é" * 130, " "])
NAMES = st.one_of(st.lists(PARTS, max_size=5).map("/".join), st.text(max_size=40))


@given(name=NAMES)
def test_a_name_is_inside_or_refused(name):
    folder = Path("/workspace/cache/files")
    try:
        names.check(name, PLACE)
    except BadInput:
        return
    path = Path(f"{folder}/{name}")
    assert ".." not in path.parts
    assert folder in path.parents
    assert path.name
    assert path.relative_to(folder).as_posix() == name
    assert len(path.name.encode()) <= 255


@given(st.lists(st.sampled_from(["a", "a/b", "a/b/c", "b", "c/d", "c"]), min_size=1, max_size=5))
def test_names_that_cannot_all_be_files_are_refused(found):
    folders = {"/".join(name.split("/")[:n]) for name in found for n in range(1, len(name.split("/")))}
    if len(set(found)) == len(found) and not folders & set(found):
        names.check_all(found, PLACE)
    else:
        with pytest.raises(BadInput, match="twice"):
            names.check_all(found, PLACE)
