"""The suites of compat/run. Each has `name`, `about` and `run(setting)`, which gives Cases.

Where cases fail the whole suite is run once more, unless it says `tries_again`.
"""

from typing import NamedTuple


class Setting(NamedTuple):
    """What compat/run was asked for.

    subject, subject_debug: the program under test, and the one with the test-only commands
    reference: a memcached to compare with, or None for Debian's
    source: a built memcached source tree, or None for Debian's
    """

    subject: str
    subject_debug: str
    reference: str | None
    source: str | None
    skip_reference: bool
    files: list
    jobs: int
    commands: int
    seed: str


from . import behind_proxy, clients, differential, failover, hostile, libmemcached, placement, proxied, testapp, tools, upstream  # noqa: E402

ALL = [upstream, behind_proxy, testapp, tools, libmemcached, *clients.ALL, differential, hostile, proxied, placement, failover]
