"""`featkit doctor`: examine whether this machine can run featkit."""

from __future__ import annotations

from dataclasses import asdict

from featkit.cli.console import print_json, print_table, stdout
from featkit.cli.options import AsJson
from featkit.extras import need_extra
from featkit.wording import counted

MARKS = {"ok": "", "warning": "!", "problem": "✗"}


def doctor(*, json_: AsJson = False) -> int:
    """Examine this machine: processors, memory, disks, packages, FAISS, and every engine by trying
    it.

    The exit code is 1 if something is wrong that featkit needs.

    Example: featkit doctor --json
    """
    need_extra("cpu", "onnxruntime")
    from featkit.doctor import OK, PROBLEM, examine

    findings = [*examine()]
    problems = [finding for finding in findings if finding.status == PROBLEM]
    if json_:
        print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        rows = [(MARKS[each.status], each.name, each.value) for each in findings]
        print_table("", ("", "", ""), rows)
        for finding in findings:
            if finding.status != OK:
                stdout().print(f"{finding.name}: {finding.advice}")
        good = "Everything that featkit needs works here."
        stdout().print(good if not problems else f"{counted(len(problems), 'problem')}.")
    return 1 if problems else 0
