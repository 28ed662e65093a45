"""docs/checks.md: every check of data with its severity, remedy and fix."""

from __future__ import annotations

from finetune_api.checks import CHECKS, ROW_CODES, Check

_HEAD = """# Checks of data

<!-- Generated from finetune_api.checks by `make crds`. Do not edit. -->

Before training, every row is read and checked on a CPU: by `prepare` in the cluster, and by `ftj validate` on your
machine. A finding has a code, a severity, a count, the first ten rows with file and line, and what to do. Personal data and
secrets are masked wherever they are shown: `j***@a***.com`, `AKIA…(20 characters)`.

```yaml
spec:
  data:
    train: [{uri: pvc://datasets/rows.jsonl}]
    checks:
      minExamples: 100
      maxInvalidFraction: 0.01
      exactDuplicates: 0.05
      nearDuplicates: 0.2
      leakage: 0
      fail: [Secrets, Pii]
      ignore: [LanguageMix]
```

- `maxInvalidFraction`: the share of rows that may be unusable. They are left out and listed. By default none may.
- `exactDuplicates`, `nearDuplicates`, `leakage`: shares above which the data is refused. Not set: only reported.
- `fail`: checks that refuse the data when they find anything. `ignore`: checks to skip.
- `data.fixes` applies the fixes of the last column to copies; the originals do not change.

All other findings are only reported, in the data report and by `ftj validate`.

"""

_ROWS = """## Rows that cannot be used

An error in each of these rows. They are skipped as far as `maxInvalidFraction` allows.

"""

_WHOLE = """
## The data as a whole

"""

_HOW = """
## How they work

| check | what counts |
|---|---|
| `ExactDuplicates`, `Leakage` | Content that is equal to the last character, role by role; other fields of a row do not count. For classifiers duplicates have the same label too. One list that is split into train, validation and test never separates equal rows, so leakage is checked only between separate files. |
| `NearDuplicates`, `NearLeakage` | MinHash with 128 hashes over pieces of about three words, without case and punctuation; from a similarity of about 0.8: one word in thirty may differ. Rows of fewer than eight words are compared exactly only. Near leakage is also a held-out prompt that is in train with another answer. |
| `ConflictingAnswers` | The same prompt (all turns before the last answer, or the text of a classifier) with another answer (or label). |
| `LowDiversity` | Of all phrases of three words, in a sample of up to a million, fewer than 5% are different ones. |
| `DominantTemplate` | 60% of at least 50 prompts begin with the same four words. |
| `Boilerplate` | A fifth of at least 50 answers begins or ends with the same sentence. |
| `DominantLabel`, `LabelImbalance` | A label on 80% of at least 50 rows of train; labels with less than a tenth of an even share. |
| `LanguageMix` | py3langid on the first 500 rows and every 32nd after them, where it is 95% sure; other languages make up at least 0.5%. |
| `Refusals` | Answers that begin by refusing, in English, German, French or Spanish. |
| `Repetition` | 60% of a row's phrases, and at least 60 of them, appeared in it before; or one character 200 times. |
| `Pii` | E-mail addresses; phone numbers that exist in a numbering plan (international, American, or behind a word such as "tel"); card numbers by network and check digit; IBANs; national ids by their check digits. Addresses reserved for examples and well-known test numbers do not count. Names are not detected. |
| `Secrets` | Keys and tokens in the formats of their issuers (AWS, GitHub, GitLab, Slack, Google, OpenAI, Anthropic, Hugging Face, Stripe, npm, PyPI and others), private keys, JSON Web Tokens, passwords in URLs, and random values that are assigned to a name such as `api_key`. Placeholders and published examples do not count. |
| `ToxicTerms` | Insults and slurs of a list of about 420 English words, whole words only. It cannot distinguish use from mention. |
| `DemographicImbalance` | English words for groups (women and men, religions, origins, ages): one appears in five times as many rows as another, of at least 100. |
| `StereotypeAssociation` | Words for a group appear with a word for a trade or trait at least three times as often as those for the others, in at least 20 rows, and hardly by chance (G of at least 20). It counts words in rows: read the rows to judge what they mean. |

All checks run in one pass and keep 73 bytes per row: ten million rows need 730 MB, and twice that for a moment at the end.
Word statistics use the first 20,000 characters of a row; personal data and secrets are searched in all of it.
"""


def text() -> str:
    """The whole page."""
    rows = [check for check in CHECKS.values() if check.code in ROW_CODES]
    whole = [check for check in CHECKS.values() if check.code not in ROW_CODES]
    return "".join([_HEAD, _ROWS, _table(rows, severity=False), _WHOLE, _table(whole, severity=True), _HOW])


def _table(checks: list[Check], *, severity: bool) -> str:
    head = ["code", *(["severity"] if severity else []), "finds", "what to do", "fixed by"]
    lines = [head, ["---"] * len(head)]
    for check in checks:
        cells = [f"`{check.code}`", *([check.severity] if severity else []), check.finds, check.remedy]
        lines.append([*cells, f"`{check.fix}`" if check.fix else ""])
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
