"""pvc://: what is there, and links, which stay on their claim or are refused."""

from __future__ import annotations

import pytest
from finetune_trainer.errors import BadInput


@pytest.fixture
def tree(workspace):
    data = workspace.claims / "data"
    (data / "set" / "deep").mkdir(parents=True)
    (data / "set" / "a.jsonl").write_text("x")
    (workspace.claims / "secret.jsonl").write_text("not on this claim")
    return data


INSIDE = ("set/a.jsonl", "set", "link.jsonl", "linked")
OUTSIDE = {
    "out.jsonl": "out.jsonl is a link that leads out of claim data",
    "folder": r"folder holds deep/x, which is a link that leads out of claim data",
    "up/secret.jsonl": r"up/secret.jsonl is a link that leads out",
    "dangling.jsonl": r"dangling.jsonl is a link that leads out",
}


@pytest.fixture
def links(tree):
    (tree / "link.jsonl").symlink_to("set/a.jsonl")
    (tree / "linked").symlink_to(tree / "set")
    (tree / "out.jsonl").symlink_to("../secret.jsonl")
    (tree / "folder" / "deep").mkdir(parents=True)
    (tree / "folder" / "deep" / "x").symlink_to("/etc")
    (tree / "up").symlink_to("..")
    (tree / "dangling.jsonl").symlink_to("/nowhere/at/all")
    return tree


@pytest.mark.parametrize("path", INSIDE)
def test_links_inside_a_claim_are_followed(workspace, links, path):
    assert workspace.fetch({"uri": f"pvc://data/{path}"}) == links / path


@pytest.mark.parametrize("path", OUTSIDE)
def test_links_that_lead_out_are_refused(workspace, links, path):
    with pytest.raises(BadInput, match=OUTSIDE[path]):
        workspace.fetch({"uri": f"pvc://data/{path}"})


def test_a_claim_of_a_local_run_may_be_a_link_itself(workspace, tree):
    (workspace.claims / "other").symlink_to(tree)
    assert workspace.fetch({"uri": "pvc://other/set"}).is_dir()


def test_what_is_not_there_is_said_with_what_is(workspace, tree):
    with pytest.raises(BadInput, match=r"pvc://data/set/b.jsonl does not exist; pvc://data/set holds a.jsonl, deep/"):
        workspace.local({"uri": "pvc://data/set/b.jsonl"})
    assert workspace.pinned({"uri": "pvc://data/set"}) == []
