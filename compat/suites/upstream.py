"""memcached's own t/*.t, unedited, against whatever is staged as memcached-debug."""

import concurrent.futures
import glob
import os
import re
import shutil
import tempfile

from . import peers, processes, tap
from .report import EXPLAINED, FAILED, PASSED, SKIPPED, Case
from .upstream_files import ADDED, FILES, NEWER, OUT, OURS, SLOW

name = "t"
about = "memcached's own t/*.t"
# Fails by itself only for good: it has second tries of its own.
tries_again = True

SECONDS = 100
USERS = os.path.join(peers.WORK, "users-of-t")
# Options that changed their unit after 1.6.18: bytes became kilobytes.
WRAPPER = """#!/bin/sh
# Options that are added come with COMPAT_ADDED.
for argument; do
    [ -n "$COMPAT_OLD" ] || break
    shift
    case $argument in
        *slab_chunk_max=[0-9]*)
            rest=${argument#*slab_chunk_max=}; size=${rest%%[!0-9]*}
            if [ "$size" -ge 1024 ]; then
                argument=${argument%%slab_chunk_max=*}slab_chunk_max=$((size / 1024))${rest#"$size"}
            fi;;
    esac
    set -- "$@" "$argument"
done
exec 'PROGRAM' "$@" $COMPAT_ADDED
"""


def version(source):
    """The version of a source tree, such as 1.6.18."""
    for name in ("version.m4", "configure.ac", "configure"):
        path = os.path.join(source, name)
        if os.path.exists(path):
            with open(path, encoding="utf-8", errors="replace") as file:
                if found := re.search(r"(?:VERSION_NUMBER\], \[|PACKAGE_VERSION='|^VERSION=')([0-9.]+)", file.read(), re.MULTILINE):
                    return found[1]
    return "unknown"


def stage(directory, source, program, wrapped=True):
    """Lays out what the tests expect of their working directory."""
    shutil.copytree(os.path.join(source, "t"), os.path.join(directory, "t"))
    for name in ("doc", "scripts"):
        if os.path.isdir(os.path.join(source, name)):
            os.symlink(os.path.join(source, name), os.path.join(directory, name))
    shutil.copy(os.path.join(source, "timedrun"), directory)
    target = os.path.join(directory, "memcached-debug")
    if wrapped:
        with open(target, "w", encoding="utf-8") as file:
            file.write(WRAPPER.replace("PROGRAM", program))
        os.chmod(target, 0o755)
    else:
        os.symlink(program, target)
    os.symlink("memcached-debug", os.path.join(directory, "memcached"))
    # Perl's own libraries may be asked for as any user.
    os.chmod(directory, 0o755)


def environment_for(file, reference, old):
    environment = own_environment(file, reference)
    if not reference:
        environment["COMPAT_OLD"] = "yes" if old else ""
        environment["COMPAT_ADDED"] = ADDED[file][0] if file in ADDED else ""
    return environment


def own_environment(file, reference):
    if file.startswith("ssl_"):
        return {"SSL_TEST": "1"}
    if file == "binary-sasl":
        # The test makes its user with saslpasswd2; Larder reads a password file.
        return {"RUN_SASL_TESTS": "1", **({} if reference else {"MEMCACHED_SASL_PWDB": USERS})}
    return {}


def play(directory, file, seconds, reference, old):
    """Runs one file; returns (state, failed subtests by number, note)."""
    status, out, errors = processes.play(["perl", f"t/{file}.t"], directory, seconds, environment_for(file, reference, old))
    for left in glob.glob("/tmp/memcachetest.*"):
        if (pid := left.split(".")[1]).isdigit() and not os.path.exists(f"/proc/{pid}"):
            try:
                os.unlink(left)
            except OSError:
                pass
    result = tap.read(out)
    if status is None:
        return "failed", result.failed, f"not finished after {seconds} s and {result.ran} subtests"
    if result.skipped is not None and status == 0:
        return "skipped", {}, result.skipped
    if result.failed and status != 0 and result.plan == result.ran:
        return "failed", result.failed, ""
    if status != 0 or result.plan != result.ran:
        said = [line for line in errors.splitlines() if line.strip() and not re.match(r"#\s*$|#\s+(Looks like|Failed|at )", line)]
        return "failed", result.failed, f"ended after {result.ran} of {result.plan or 'an unknown number of'} subtests: {said[-1] if said else ''}"
    return "passed", {}, f"{result.ran} subtests"


def play_all(source, program, old, files, jobs, limits, good, reference):
    """Plays files, some at a time; those that are not good get a second try by themselves."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="compat-t.", dir=peers.WORK) as directory:
        stage(directory, source, program, not reference)
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            together = {file: pool.submit(play, directory, file, limits.get(file, SECONDS), reference, old) for file in files if file not in SLOW}
            found.update({file: future.result() for file, future in together.items()})
        for file in files:
            if file not in found or not good(file, found[file]):
                found[file] = play(directory, file, limits.get(file, SECONDS), reference, old)
            if file in SLOW and not good(file, found[file]):
                found[file] = play(directory, file, limits.get(file, SECONDS), reference, old)
    return found


def judge(file, before, after, newer, ours, name=name):
    """The case of one file from what memcached and Larder made of it."""
    state, failed, note = after
    if state == "passed" and file in ADDED:
        return Case(name, file, EXPLAINED, f"with {ADDED[file][0]}: {ADDED[file][1]}")
    if state == "passed":
        return Case(name, file, PASSED)
    if state == "skipped" and before is not None and before[0] == "passed":
        return Case(name, file, FAILED, f"skips itself on Larder only: {note}")
    if state == "skipped":
        return Case(name, file, SKIPPED, note)
    reasons = []
    left = dict(failed)
    for expected in (newer.get(file), ours.get(file)):
        if expected is None:
            continue
        subtests, reason = expected
        if subtests is None:
            left, note = {}, ""
        elif hit := {number for number, words in left.items() if words in subtests or number in subtests}:
            left = {number: words for number, words in left.items() if number not in hit}
        elif not (note and "ends" in subtests):
            continue
        if note and subtests is not None and "ends" in subtests:
            note = ""
        reasons.append(reason)
    if not left and not note:
        return Case(name, file, EXPLAINED, "; ".join(reasons))
    if before is not None and before[0] == "failed" and set(left) <= set(before[1]):
        return Case(name, file, EXPLAINED, f"fails on memcached, too: {before[2] or list(before[1].values())[:2]}")
    words = [f"{number} {words}" for number, words in list(left.items())[:5]]
    more = f" and {len(left) - 5} more" if len(left) > 5 else ""
    return Case(name, file, FAILED, "; ".join([*words, *([note] if note else [])]) + more)


def run(setting):
    peers.debian("perl", "libio-socket-ssl-perl", "sasl2-bin", "libsasl2-modules")
    source = setting.source or peers.memcached_source()
    release = version(source)
    present = sorted(os.path.basename(path)[:-2] for path in glob.glob(os.path.join(source, "t/*.t")))
    out = {file: why for file in present for pattern, why in OUT if re.fullmatch(pattern, file)}
    files = [file for file in present if file not in out]
    if setting.files:
        files = [file for file in files if file in [wanted.removesuffix(".t") for wanted in setting.files]]
        out = {}
    known = {file for group in FILES.values() for file in group}
    os.makedirs(peers.WORK, exist_ok=True)
    newer, ours = NEWER.get(release, {}), OURS
    with open(USERS, "w", encoding="utf-8") as file:
        file.write("testuser@memcached.realm:testpass\n")
    before = {}
    if not setting.skip_reference:
        reference = os.path.join(source, "memcached-debug")
        before = play_all(source, reference, False, files, setting.jobs, {}, lambda _, result: result[0] != "failed", True)
    # Where a file stops early on Larder for a known reason, nothing is gained by waiting.
    limits = {file: 15 for table in (newer, ours) for file, (subtests, _) in table.items() if "ends" in (subtests or ())}

    def good(file, result):
        return judge(file, before.get(file), result, newer, ours).outcome != FAILED

    after = play_all(source, setting.subject_debug, release != "1.6.45", files, setting.jobs, limits, good, False)
    cases = [judge(file, before.get(file), after[file], newer, ours) for file in files]
    for case in cases:
        if case.outcome == FAILED and case.name not in known:
            cases[cases.index(case)] = case._replace(note=case.note + " (a file not listed in upstream_files.py)")
    return cases + [Case(name, file, SKIPPED, why) for file, why in out.items()]
