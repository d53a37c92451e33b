"""Running test programs with a time limit, and ending what they leave behind."""

import glob
import itertools
import os
import signal
import subprocess
import time

_numbers = itertools.count()


def marked(mark):
    """Processes that were started with this mark in their environment."""
    found = []
    for path in glob.glob("/proc/[0-9]*/environ"):
        try:
            with open(path, "rb") as file:
                if b"COMPAT_MARK=" + mark.encode() in file.read().split(b"\0"):
                    found.append(int(path.split("/")[2]))
        except OSError:
            pass
    return found


def reap(mark, patience):
    """Waits for marked processes to go by themselves, then ends them."""
    deadline = time.monotonic() + patience
    how = signal.SIGTERM
    while left := marked(mark):
        if time.monotonic() > deadline:
            for process in left:
                try:
                    os.kill(process, how)
                except ProcessLookupError:
                    pass
            how, deadline = signal.SIGKILL, time.monotonic() + 2
        time.sleep(0.05)


def play(command, directory, seconds, environment=None):
    """Runs a test program; returns its exit status (None after the time limit), output and errors."""
    mark = f"{os.getpid()}.{next(_numbers)}"
    environment = {**os.environ, **(environment or {}), "COMPAT_MARK": mark, "PWD": directory}
    environment.pop("HARNESS_ACTIVE", None)
    process = subprocess.Popen(
        command, cwd=directory, env=environment, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        out, errors = process.communicate(timeout=seconds)
        status = process.returncode
    except subprocess.TimeoutExpired:
        for left in marked(mark):
            os.kill(left, signal.SIGKILL)
        out, errors = process.communicate()
        status = None
    reap(mark, 0 if status is None else 2)
    return status, out.decode("utf-8", "replace"), errors.decode("utf-8", "replace")
