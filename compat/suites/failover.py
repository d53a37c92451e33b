"""Groups of three nodes and etcd, broken on purpose: see compat/failover.py and compat/failover_proxied.py."""

import os
import subprocess
import sys

from . import peers
from .report import FAILED, PASSED, Case

name = "failover"
about = "nodes, links and etcd are killed, cut and frozen; one leads, and nothing acknowledged is lost"

SECONDS = 600


SCRIPTS = ["failover.py", "failover_proxied.py"]


def run(setting):
    peers.debian("etcd-server", "etcd-client", "openssl")
    return [case for script in SCRIPTS for case in cases(setting, script)]


def cases(setting, script):
    command = [sys.executable, os.path.join(peers.HERE, script), setting.subject]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return [Case(name, script, FAILED, note=f"not done after {SECONDS} s")]
    found = []
    for line in done.stdout.splitlines():
        good = line.endswith(" ok")
        if good or line.endswith(" FAILED"):
            what = line[:34].strip()
            found.append(Case(name, what, PASSED if good else FAILED, note=line[34:].rsplit(" ", 1)[0].strip()))
    if done.returncode and not any(case.outcome == FAILED for case in found):
        found.append(Case(name, script, FAILED, note=(done.stdout + done.stderr).strip()[-500:]))
    return found
