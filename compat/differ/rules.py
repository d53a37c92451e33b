"""What is compared loosely, and the known differences by name.

A command that a rule speaks of is sent by itself, so that its answer can be told from others.
"""

import base64
import re
from typing import NamedTuple

from . import drift


class Rule(NamedTuple):
    name: str
    reason: str
    # References it holds for: "all", or "1.6.18" for what changed between that release and 1.6.45.
    reference: str
    # Whether a command is affected.
    matches: callable
    # Whether these two answers (reference, subject) are explained; None: the command is not sent.
    explains: callable


TIMES = re.compile(rb"((?:^|\n)(?:HD|VA \d+)\b[^\r\n]*?)( [tl])\d+")
DESCRIBED = re.compile(rb"(\nME |^ME )([^\n]*?) exp=-?\d+ la=\d+ ")


def timeless(answer):
    """Without seconds left and gone by, which the two servers do not count at the same moment."""
    before = None
    while before != answer:
        before, answer = answer, TIMES.sub(rb"\1\2#", answer)
    return DESCRIBED.sub(rb"\1\2 exp=# ", answer)


def subject(command):
    """The key of a meta or binary command, and whether it counts."""
    if not command.startswith(b"\x80"):
        found = words(command)
        key = found[1] if len(found) > 1 else b""
        if b"b" in found[2:]:
            try:
                key = base64.b64decode(key)
            except ValueError:
                pass  # an error, then
        return key, found[0] == b"ma"
    extras = command[4]
    key = int.from_bytes(command[2:4], "big")
    return command[24 + extras : 24 + extras + key], command[1] in (0x05, 0x06, 0x15, 0x16)


def packets(answer):
    """Binary answers without what follows a setting of its own: the statistics."""
    made, at = [], 0
    while at + 24 <= len(answer) and answer[at] == 0x81:
        body = int.from_bytes(answer[at + 8 : at + 12], "big")
        if answer[at + 1] != 0x10:
            made.append(answer[at : at + 24 + body])
        elif not body or answer[at + 6 : at + 8] != bytes(2):
            made.append(answer[at : at + 24 + body])
        at += 24 + body
    return b"".join(made) + answer[at:]


COUNTED = re.compile(rb"(VALUE \S+ \d+) \d+( \d+)?\r\n(\d+) *\r\n")
ONLY_SETS = re.compile(rb"PREFIX \S+ get 0 hit 0 set \d+ del 0")
BAD_FORMAT = b"CLIENT_ERROR bad command line format\r\n"


def line_of(command):
    return command.partition(b"\n")[0].removesuffix(b"\r")


def words(command):
    return [word for word in line_of(command).split(b" ") if word]


def long_get(command):
    found = words(command)
    return found[:1] in ([b"get"], [b"gets"], [b"gat"], [b"gats"]) and any(len(word) > 250 for word in found[1:])


def lengthens(command):
    """Whether an ma may make its number longer."""
    flags = {word[:1]: word[1:] for word in words(command)[2:]}
    return flags.get(b"M", b"I")[:1] not in (b"D", b"-") and flags.get(b"D", b"1").strip(b"0") != b""


RULES = [
    Rule(
        "long key in get",
        "1.6.45 ends the error twice, and drops answers that are still queued; ours answers its own request, once",
        "all",
        long_get,
        lambda command, reference, subject: reference in (BAD_FORMAT + b"\r\n", b"\r\n") and subject == BAD_FORMAT
        or reference.replace(BAD_FORMAT + b"\r\n", BAD_FORMAT) == subject,
    ),
]
RULES.append(
    Rule(
        "text behind a binary byte",
        "memcached waits for as many bytes as a header of nonsense announces; ours refuses the header",
        "all",
        lambda command: command.startswith(b"\x80") and command[1:2].islower(),
        lambda command, reference, subject: reference == b"" and subject.startswith(b"\x81"),
    )
)
RULES.append(
    Rule(
        "me with b alone",
        "memcached heeds the b of me only if another word follows it",
        "all",
        lambda command: words(command)[:1] == [b"me"] and words(command)[2:] == [b"b"],
        lambda command, reference, subject: True,
    )
)
RULES.append(Rule("1.6.18 takes it otherwise", "see drift.py", "1.6.18", drift.changed, None))
RULES.append(
    Rule(
        "forgotten expiry or cas id",
        "memcached forgets the T and the E of ma where the number gets longer: they go to the item that it has just replaced",
        "all",
        lambda command: command.startswith(b"ma ") and {b"T", b"E"} & {word[:1] for word in words(command)[2:]} and lengthens(command),
        None,
    )
)
RULES.append(
    Rule(
        "opaque too long",
        "memcached does what it then calls an error for its opaque",
        "all",
        lambda command: command[:1] == b"m" and any(word[:1] == b"O" and len(word) > 32 for word in words(command)[2:]),
        None,
    )
)
RULES.append(
    Rule(
        "flag H",
        "ours, for hashes of values; memcached knows none",
        "all",
        lambda command: command[:1] == b"m" and any(word[:1] == b"H" for word in words(command)[2:]),
        None,
    )
)
RULES.append(
    Rule(
        "repl",
        "ours, for followers; memcached knows none",
        "all",
        lambda command: words(command)[:1] == [b"repl"],
        lambda command, reference, subject: reference.removeprefix(b"ERROR\r\n") == subject.partition(b"\r\n")[2],
    )
)
TEXTS = Rule("error texts", drift.same_but_for_texts.__doc__, "none", lambda command: False, lambda command, reference, subject: False)
WITHHELD = Rule(
    "withheld",
    "memcached does not send the answers it has ready while it skips a refused value, and forgets them if the client ends its side",
    "none",
    lambda command: False,
    lambda command, reference, subject: False,
)


def applicable(reference_version, with_drift):
    """The rules to apply to a reference of that version."""
    old = drift.is_old(reference_version)
    return [rule for rule in RULES if rule.reference == "all" or (old and with_drift)]


# Not cmd_set: see the sets of "stats detail" below.
STATS_COMPARED = """cmd_get cmd_flush cmd_touch get_hits get_misses delete_misses
delete_hits incr_misses incr_hits decr_misses decr_hits cas_misses cas_hits cas_badval touch_hits touch_misses store_too_large
store_no_memory auth_cmds auth_errors threads limit_maxbytes pointer_size max_connections accepting_conns
evictions""".split()


def normal(command, answer, server):
    """The part of an answer that must be the same on both servers."""
    if command.startswith((b"version", b"lru_crawler m")):
        return answer.replace(server.version, b"<version>")
    if not command.startswith(b"stats"):
        # A number that was counted while an answer with it still waited is moved by memcached, and
        # loses the blanks that fill up its length.
        return COUNTED.sub(lambda found: b"\r\n".join([found[1] + (found[2] or b""), found[3], b""]), answer)
    word = b" ".join(words(command))
    if word == b"stats":
        compared = [name.encode() for name in STATS_COMPARED]
        lines = [line.split(b" ", 2) for line in answer.split(b"\r\n")]
        return b"\r\n".join(
            b" ".join(line) for line in lines if len(line) != 3 or line[1] in compared
        )
    if word == b"stats settings":
        built = rb"STAT (tcpport|inter|domain_socket|oldest|ext_\w+|ssl_\w+|proxy_\w+|drop_privileges|slab_automove_freeratio) .*\r\n"
        return re.sub(built, b"", answer)
    if word.startswith(b"stats cachedump"):
        return re.sub(rb"ITEM .*\r\n", b"", answer)
    if word == b"stats detail dump":
        # memcached counts a set when its line has come, ours when its value has: values that never
        # come make the difference.
        lines = [line for line in answer.split(b"\r\n") if not ONLY_SETS.fullmatch(line)]
        return re.sub(rb" set \d+ ", b" ", b"\r\n".join(sorted(lines)))
    return answer
