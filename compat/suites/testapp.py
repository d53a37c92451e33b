"""The black-box tests of memcached's testapp.c, which start ./memcached-debug themselves."""

import os
import re
import tempfile

from . import peers, processes, tap
from .report import SKIPPED, Case, compare
from .upstream import stage

name = "testapp"
about = "memcached's testapp.c: binary protocol, port files, shutdown"

# The others test functions of memcached's, linked into the program.
BLACK_BOX = re.compile(r"binary_|issue_|start_server|stop_server|shutdown")


def play(source, program):
    """Results by test name."""
    with tempfile.TemporaryDirectory(prefix="compat-testapp.", dir=peers.WORK) as directory:
        stage(directory, source, program, False)
        status, out, errors = processes.play([os.path.join(source, "testapp")], directory, 120)
    found, skipped = {}, []
    for line in out.splitlines():
        if named := re.match(r"(not )?ok (# SKIP )?(\d+) - (\w+)", line):
            if not BLACK_BOX.match(named[4]):
                continue
            if named[2]:
                skipped.append(named[4])
            else:
                found[named[4]] = f"test {named[3]} fails" if named[1] else None
    if status != 0 and not any(found.values()):
        found["end"] = f"exit status {status} after {tap.read(out).ran} tests: {errors.strip()[-300:]}"
    return found, skipped


def run(setting):
    source = setting.source or peers.memcached_source()
    os.makedirs(peers.WORK, exist_ok=True)
    before = None if setting.skip_reference else play(source, os.path.join(source, "memcached-debug"))[0]
    found, skipped = play(source, setting.subject_debug)
    return compare(name, before, found) + [Case(name, test, SKIPPED, "skips itself") for test in skipped]
