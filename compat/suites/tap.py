"""The output of Perl's tests."""

import re
from typing import NamedTuple

_LINE = re.compile(r"(not )?ok\b(?: (\d+))?(?: - | # (?=SKIP)|\s*)(.*)")
_PLAN = re.compile(r"1\.\.(\d+)(?:\s*#\s*SKIP\S*\s*(.*))?", re.IGNORECASE)


class Result(NamedTuple):
    """plan: number announced, or None; skipped: why the whole file was, or None; failed: number to description"""

    plan: int | None
    skipped: str | None
    ran: int
    failed: dict


def read(text):
    plan, skipped, ran, failed = None, None, 0, {}
    for line in text.splitlines():
        if found := _PLAN.fullmatch(line.rstrip()):
            plan = int(found[1])
            if plan == 0 or found[2]:
                skipped = found[2] or "skipped"
        elif found := _LINE.match(line):
            ran += 1
            if found[1] and "# TODO" not in line:
                failed[int(found[2] or ran)] = found[3].strip()[:80]
    return Result(plan, skipped, ran, failed)
