"""Groups of three nodes and etcd, broken on purpose: see compat/failover.py."""

import os
import subprocess
import sys

from . import peers
from .report import FAILED, PASSED, Case

name = "failover"
about = "nodes, links and etcd are killed, cut and frozen; one leads, and nothing acknowledged is lost"

SECONDS = 600


def run(setting):
    peers.debian("etcd-server", "etcd-client", "openssl")
    script = os.path.join(peers.HERE, "failover.py")
    try:
        done = subprocess.run([sys.executable, script, setting.subject], capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return [Case(name, "all", FAILED, note=f"not done after {SECONDS} s")]
    cases = []
    for line in done.stdout.splitlines():
        good = line.endswith(" ok")
        if good or line.endswith(" FAILED"):
            what = line[:34].strip()
            cases.append(Case(name, what, PASSED if good else FAILED, note=line[34:].rsplit(" ", 1)[0].strip()))
    if done.returncode and not any(case.outcome == FAILED for case in cases):
        cases.append(Case(name, "all", FAILED, note=(done.stdout + done.stderr).strip()[-500:]))
    return cases
