"""Bad input: answered as memcached 1.6.45 has answered it."""

import ast

import hostile
from differ import drift

from . import peers
from .report import FAILED, PASSED, Case

name = "hostile"
about = "3,300 fixed cases of bad input: the answers of memcached 1.6.45, byte for byte"


def alike(reply, recorded):
    """Whether another release has answered in the same way: its errors may have other words."""
    reply = reply.replace(b"1.6.18", b"1.6.45")
    if not recorded.startswith("b'") or not recorded.endswith("'"):
        return hostile.shown(reply) == recorded
    return drift.same_but_for_texts(reply, ast.literal_eval(recorded))


def judge(group, table, replies, before):
    """The case of one group of inputs; `before` is what memcached has answered, if it was asked."""
    wrong, agreed, whole = [], 0, None
    count = len(replies)
    for (sent, pieces), ours, original in zip(hostile.cases(group), replies, before or [None] * count, strict=True):
        recorded = table.get(hostile.name_of(pieces), None if len(pieces) == 1 else whole)
        whole = recorded if len(pieces) == 1 else whole
        if recorded is None:
            return Case(name, group.__name__, FAILED, f"no answer is recorded to {hostile.brief(sent)}: run hostile.py --record")
        agreed += original is not None and alike(original, recorded)
        if hostile.shown(ours) == recorded:
            continue
        known = ast.literal_eval(recorded) if recorded.endswith(("'", '"')) else None
        if known is None or not hostile.reason_for(sent, known, ours):
            wrong.append(f"{hostile.brief(sent)} is answered {hostile.brief(ours)}, not {recorded}")
    if wrong:
        return Case(name, group.__name__, FAILED, f"{len(wrong)} of {count}: " + "; ".join(wrong[:3]))
    if before and agreed < count // 2:
        return Case(name, group.__name__, FAILED, f"memcached itself answers {agreed} of {count} so: recorded of other cases?")
    return Case(name, group.__name__, PASSED, f"{count} cases" + (f", {agreed} of them as Debian's memcached" if before else ""))


def run(setting):
    table = hostile.recorded()
    cases = []
    for group in hostile.GROUPS:
        before = None
        if not setting.skip_reference:
            before = list(hostile.replies(setting.reference or peers.memcached(), group))
        cases.append(judge(group, table, list(hostile.replies(setting.subject, group)), before))
    return cases
