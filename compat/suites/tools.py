"""libmemcached's command-line tools: memccapable tests the server, the others are used on it."""

import os
import re
import subprocess
import tempfile

from differ.servers import Server

from . import peers
from .report import compare

name = "tools"
about = "memccapable (text and binary), memccat, memccp, memcdump and the others"


def capable(server, kind):
    """memccapable's own tests."""
    done = subprocess.run(
        ["memccapable", kind, "-h", "127.0.0.1", "-p", str(server.port), "-t", "10"],
        capture_output=True, timeout=120, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    # "[FAIL]" goes to standard error, so that the next name follows a failed one on its line.
    found = {}
    for test, passed in re.findall(r"((?:ascii|binary) [a-z ]+?)(?:  +| ?(?=\[))(\[pass\])?", done.stdout.decode("latin-1")):
        found["memccapable " + test] = None if passed else "fails"
    if not found or (done.returncode != 0 and not any(found.values())):
        found[f"memccapable {kind}"] = f"exit status {done.returncode}: {done.stderr[-300:]!r}"
    return found


_DELETE = "1.6.45 takes and ignores words behind `delete KEY 0`; memccapable wants the error of 1.6.18"
NEWER = {"memccapable ascii delete": _DELETE, "memccapable ascii delete noreply": _DELETE}


# (name, command with SERVER and files, expected exit status, expected output or None)
def steps(directory, binary):
    kind = ["--binary"] if binary else []
    one, two, big = (os.path.join(directory, name) for name in ("one", "two", "big"))
    contents = {one: b"first", two: b"\x00\r\n\xff second", big: bytes(range(256)) * 3000}
    for path, content in contents.items():
        with open(path, "wb") as file:
            file.write(content)
    return [
        *([] if binary else [("memcping", ["memcping"], 0, None)]),
        ("memcflush", ["memcflush", *kind], 0, None),
        ("memccp", ["memccp", "--set", *kind, one, two, big], 0, None),
        ("memccp --flag", ["memccp", "--flag", "7", "--expire", "500", *kind, one], 0, None),
        ("memccat", ["memccat", *kind, "one"], 0, b"first\n"),
        ("memccat --flags", ["memccat", "--flags", *kind, "one"], 0, b"7\nfirst\n"),
        ("memccat bytes", ["memccat", "--file", os.path.join(directory, "back"), *kind, "big"], 0, None),
        ("memccat absent", ["memccat", *kind, "absent"], None, None),
        ("memcexist", ["memcexist", *kind, "two"], 0, None),
        ("memcexist absent", ["memcexist", *kind, "absent"], 1, None),
        ("memctouch", ["memctouch", "--expire", "600", *kind, "two"], 0, None),
        ("memctouch absent", ["memctouch", "--expire", "600", *kind, "absent"], 1, None),
        ("memccp --add", ["memccp", "--add", *kind, one], None, None),
        ("memccp --replace", ["memccp", "--replace", *kind, two], 0, None),
        *([] if binary else [("memcdump", ["memcdump"], 0, None)]),
        ("memcstat", ["memcstat", *kind], 0, None),
        ("memcstat items", ["memcstat", *kind, "--args=items"], 0, None),
        ("memcstat slabs", ["memcstat", *kind, "--args=slabs"], 0, None),
        ("memcstat settings", ["memcstat", *kind, "--args=settings"], 0, None),
        ("memcstat --server-version", ["memcstat", "--server-version", *kind], 0, None),
        ("memcrm", ["memcrm", *kind, "one"], 0, None),
        ("memcrm absent", ["memcrm", *kind, "one"], 1, None),
        ("memcslap set", ["memcslap", "--test=set", "--concurrency=4", "--execute-number=500", *kind], 0, None),
        ("memcslap get", ["memcslap", "--test=get", "--concurrency=4", "--execute-number=500", *kind], 0, None),
        ("memcslap mget", ["memcslap", "--test=mget", "--concurrency=4", "--execute-number=50", *kind], 0, None),
        ("memcflush end", ["memcflush", *kind], 0, None),
    ]


STAT = re.compile(rb"^\s*(\S+): .*$", re.MULTILINE)


def comparable(test, output):
    """What must be the same on both: names of statistics without values, dumped keys in any order."""
    if test.startswith("memcstat ") and "version" in test or test == "memcstat settings":
        return b""
    if test == "memcdump":  # memcached shows one of its queues, between which items move: not the same twice
        return b""
    if test in ("memcstat items", "memcstat slabs"):
        return b"\n".join(sorted({re.sub(rb"\d+:", b"", name) for name in STAT.findall(output)}))
    if test == "memcstat":
        return b"some" if output.count(b"\n") > 30 else output
    if test.startswith(("memcslap", "memcping")):
        return b""
    return b"\n".join(sorted(output.splitlines()))


def used(server, binary):
    """What each tool does: results by name, and outputs by name."""
    found, outputs = {}, {}
    kind = "binary" if binary else "text"
    with tempfile.TemporaryDirectory() as directory:
        for test, command, status, wanted in steps(directory, binary):
            label = f"{kind} {test}"
            command = [command[0], f"--servers=127.0.0.1:{server.port}", *command[1:]]
            try:
                done = subprocess.run(command, capture_output=True, timeout=60, check=False, cwd=directory, stdin=subprocess.DEVNULL)
            except subprocess.TimeoutExpired:
                found[label] = "does not end"
                continue
            output = done.stdout
            found[label] = None
            if status is not None and done.returncode != status:
                found[label] = f"exit status {done.returncode}: {(output + done.stderr)[-200:]!r}"
            elif wanted is not None and output != wanted:
                found[label] = f"prints {output[:200]!r}"
            elif test == "memccat bytes":
                with open(os.path.join(directory, "back"), "rb") as file:
                    if file.read().removesuffix(b"\n") != bytes(range(256)) * 3000:
                        found[label] = "other bytes came back"
            outputs[label] = (done.returncode, comparable(test, output))
    return found, outputs


def play(program):
    results, outputs = {}, {}
    server = Server(program, ["-m", "256"])
    try:
        for kind in ("-a", "-b"):
            results.update(capable(server, kind))
        for binary in (False, True):
            found, said = used(server, binary)
            results.update(found)
            outputs.update(said)
        if not server.alive():
            results["alive"] = f"the server died: {server.said()}"
    finally:
        server.stop()
    return results, outputs


def run(setting):
    peers.debian("libmemcached-tools")
    found, said = play(setting.subject)
    if setting.skip_reference:
        return compare(name, None, found, NEWER)
    before, said_before = play(setting.reference or peers.memcached())
    for test, what in said.items():
        if found[test] is None and before.get(test) is None and what != said_before.get(test):
            found[test] = f"prints {what!r}, memcached {said_before.get(test)!r}"[:500]
    return compare(name, before, found, NEWER)
