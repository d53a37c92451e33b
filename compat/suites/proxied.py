"""Random commands through a proxy with five servers behind it: the answers of one memcached."""

import os
import re
import subprocess
import sys

from . import peers
from .report import FAILED, PASSED, Case

name = "proxied"
about = "random commands through a proxy with five servers behind it, and through nutcracker in front of Larder"

# Each case: the dialect, its share of the commands, and what else is to be said.
CASES = {
    "text": ("text", 0.1, lambda setting: ["--proxy", setting.subject]),
    "meta": ("meta", 0.1, lambda setting: ["--proxy", setting.subject]),
    "binary": ("binary", 0.05, lambda setting: ["--proxy", setting.subject]),
    "nutcracker": ("text", 0.05, lambda setting: ["--proxy", "nutcracker", "--by", "nutcracker", "--behind", setting.subject]),
}


def run(setting):
    reference = setting.reference or peers.memcached()
    peers.debian("nutcracker")
    cases = []
    for case, (dialect, share, others) in CASES.items():
        command = [
            sys.executable, os.path.join(peers.HERE, "proxied.py"), "--reference", reference, "--dialect", dialect,
            "--commands", str(max(int(setting.commands * share), 1)), "--seed", setting.seed, "--jobs", str(os.cpu_count() or 1),
            *others(setting),
        ]  # fmt: skip
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False)
        said = done.stdout.decode("utf-8", "replace").strip()
        print(said, flush=True)
        bad = done.returncode != 0 or not re.search(r"^proxied: .*$", said, re.MULTILINE)
        cases.append(Case(name, case, FAILED if bad else PASSED, "differs, see above" if bad else ""))
    return cases
