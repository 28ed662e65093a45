"""`make lint`: find words of the project's old dialect in documentation and in strings that users see.

Of Python files only string literals are checked, without docstrings: messages, help, descriptions in the API.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INSTEAD = {
    r"mend(s|ed|ing)?": "fix",
    r"anew|once more": "again",
    r"beside": "next to, with, in addition to",
    r"(go|goes|going|went) on": "resume, continue",
    r"(lie|lies) (in|on|there|where|below)": "is in, is stored in",
    r"nobody knows|nothing says": "unknown, not set",
    r"told|tells|says": "reported, returns, message",
    r"(a|the) look|look(s|ed)? (at|again)": "check, read, reconcile",
    r"learnt": "trained",
    r"astray": "diverged",
    r"taken for": "considered",
    r"nobody": "no one, unknown",
}
DIALECT = re.compile("|".join(rf"\b(?P<_{n}>{words})\b" for n, words in enumerate(INSTEAD)), re.IGNORECASE)
TEXTS = ("README.md", "docs/**/*.md", "operator/README.md", "charts/**/*.md", "charts/**/*.yaml", "charts/**/*.tpl",
         "charts/**/*.txt", "charts/**/*.lua")  # fmt: skip
SOURCES = ("crds/**/*.py", "operator/**/*.py", "trainer_image/**/*.py")
NOT_YET = ("operator/finetune_cli/local/",)
"""Older than the rule. A change that touches one of them removes it here."""
QUOTED = ("`mended/`", "mended data", "tell them your name")
"""Names of folders and of kinds of files, and example data."""


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of string literals that are not docstrings and have more than one word."""
    tree = ast.parse(path.read_text())
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            if " " in node.value.strip():
                yield node.lineno, node.value


def findings(patterns: tuple[str, ...]) -> Iterator[str]:
    for path in sorted(path for pattern in patterns for path in ROOT.glob(pattern)):
        name = str(path.relative_to(ROOT))
        if name.startswith(NOT_YET):
            continue
        lines = strings(path) if path.suffix == ".py" else enumerate(path.read_text().splitlines(), 1)
        for line, text in lines:
            for quoted in QUOTED:
                text = text.replace(quoted, "")
            for match in DIALECT.finditer(text):
                instead = list(INSTEAD.values())[int(str(match.lastgroup).removeprefix("_"))]
                yield f"{name}:{line}: {match[0]!r}: write {instead}"


def main() -> int:
    found = [*findings(TEXTS), *findings(SOURCES)]
    print(*found, sep="\n", end="\n" if found else "")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
