"""Lines of TAP from a client's script."""

import sys
import time
import traceback

_count = [0, 0]


def ok(name, good, came=""):
    _count[0] += 1
    _count[1] += not good
    shown = "" if good else ": " + repr(came).replace("\n", " ")[:300]
    print(f"{'ok' if good else 'not ok'} {_count[0]} - {name}{shown}", flush=True)


def same(name, came, wanted):
    ok(name, came == wanted and type(came) is type(wanted), came)


def calls(name, function, wanted):
    """What a call returns, or the class of what it raises."""
    try:
        came = function()
    except Exception as error:  # noqa: BLE001 - the class is the result
        came = type(error)
    same(name, came, wanted)


def gone(name, function, absent=None, seconds=4):
    """That a value goes within some seconds."""
    deadline = time.monotonic() + seconds
    while (came := function()) != absent and time.monotonic() < deadline:
        time.sleep(0.1)
    ok(name, came == absent, came)


def end():
    print(f"1..{_count[0]}")
    sys.exit(1 if _count[1] else 0)


def run(function):
    """Runs a script's tests; what it raises is a failure."""
    try:
        function()
    except Exception:  # noqa: BLE001 - shown
        traceback.print_exc()
        ok("no exception", False, traceback.format_exc(limit=-1))
    end()
