"""Random commands in three dialects, answers compared byte for byte with memcached's."""

import os
import re
import subprocess
import sys

from . import peers
from .report import FAILED, PASSED, Case

name = "differential"
about = "random commands, valid and not, in text, meta and binary: the same answers byte for byte"
# What it finds it has played twice.
tries_again = True

SHARES = {"text": 0.4, "meta": 0.35, "binary": 0.25}


def run(setting):
    reference = setting.reference or peers.memcached()
    cases = []
    for dialect, share in SHARES.items():
        command = [
            sys.executable, os.path.join(peers.HERE, "differential.py"), "--reference", reference, "--subject", setting.subject,
            "--dialect", dialect, "--commands", str(max(int(setting.commands * share), 1)), "--seed", setting.seed,
            "--jobs", str(os.cpu_count() or 1),
        ]  # fmt: skip
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False)
        said = done.stdout.decode("utf-8", "replace").strip()
        print(said, flush=True)
        summary = re.search(r"^differential: .*$", said, re.MULTILINE)
        bad = done.returncode != 0 or not summary
        cases.append(Case(name, dialect, FAILED if bad else PASSED, "differs, see above" if bad else ""))
    return cases
