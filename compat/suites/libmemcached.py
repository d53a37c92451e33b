"""libmemcached's own test suite, which starts the servers it needs."""

import concurrent.futures
import os
import re

from . import peers, processes
from .report import SKIPPED, Case, compare

name = "libmemcached"
about = "libmemcached's own test suite (text, binary, UDP, SASL, its tools)"
# Fails by itself only for good: it has second tries of its own.
tries_again = True

SECONDS = 90
NEWER = {"bin/memcapable": "memccapable's two tests of `delete KEY 0`, see the suite tools"}
OUT = {"memcached_regression_gh-php-memcached_0531": "wants an answer to take longer than a millisecond: sometimes it does"}


def play(build, test, program):
    """None, or what failed."""
    environment = {"MEMCACHED_BINARY": program}
    status, out, errors = processes.play([os.path.join(build, "test/runtests"), test], build, SECONDS, environment)
    if status == 0:
        return None
    if status is None:
        return f"not finished after {SECONDS} s"
    said = re.search(r"FAILED:\s*(.*?)(?=\n\n|=====)", out, re.DOTALL)
    # Addresses and ports differ from run to run.
    return re.sub(r"0x[0-9a-f]+|:\d{4,5}\b", "", " ".join((said[1] if said else errors[-300:]).split()))[:300] or f"exit status {status}"


def play_all(build, tests, program, jobs):
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        found = dict(zip(tests, pool.map(lambda test: play(build, test, program), tests), strict=True))
    return {test: failed and play(build, test, program) for test, failed in found.items()}


def run(setting):
    build = peers.libmemcached_tests()
    tests = peers.run([os.path.join(build, "test/runtests"), "--list-test-names-only"], accept=range(256)).split()
    tests = [test for test in tests if test not in OUT]
    # Debian's memcached is built without password files, which the tests of SASL use.
    reference = os.path.join(setting.source or peers.memcached_source(), "memcached")
    before = None if setting.skip_reference else play_all(build, tests, reference, setting.jobs)
    return compare(name, before, play_all(build, tests, setting.subject, setting.jobs), NEWER) + [
        Case(name, test, SKIPPED, why) for test, why in OUT.items()
    ]
