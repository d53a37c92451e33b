"""What a suite found, and how it is shown."""

from typing import NamedTuple

PASSED = "passed"
# Fails on memcached, too, or agrees with 1.6.45 where the test wants 1.6.18, or differs on purpose.
EXPLAINED = "explained"
SKIPPED = "skipped"
FAILED = "FAILED"


class Case(NamedTuple):
    """One test of one suite.

    outcome: PASSED, EXPLAINED (counts as passed, `note` has the reason), SKIPPED or FAILED
    note: what differed, or the reason
    """

    suite: str
    name: str
    outcome: str
    note: str = ""


def say(text):
    print(f"== {text}", flush=True)


def show(case):
    if case.outcome != PASSED or case.note:
        print(f"{case.outcome:9} {case.suite}/{case.name}: {case.note}", flush=True)


def count(cases):
    numbers = [(outcome, sum(case.outcome == outcome for case in cases)) for outcome in (PASSED, EXPLAINED, SKIPPED, FAILED)]
    return ", ".join(f"{number} {outcome}" for outcome, number in numbers if number)


def close(cases, seconds):
    """Prints the table and the closing line; returns the exit status."""
    print(f"\n{'suite':16}{'cases':>7}{'passed':>8}{'explained':>11}{'skipped':>9}{'failed':>8}")
    for name in dict.fromkeys(case.suite for case in cases):
        of = [case.outcome for case in cases if case.suite == name]
        numbers = [len(of), *(of.count(outcome) for outcome in (PASSED, EXPLAINED, SKIPPED, FAILED))]
        print(f"{name:16}{numbers[0]:7}{numbers[1]:8}{numbers[2]:11}{numbers[3]:9}{numbers[4]:8}")
    for case in cases:
        if case.outcome == FAILED:
            print(f"failed: {case.suite}/{case.name}: {case.note}")
    failed = sum(case.outcome == FAILED for case in cases)
    passed = sum(case.outcome in (PASSED, EXPLAINED) for case in cases)
    skipped = len(cases) - passed - failed
    print(f"compat: {seconds:.0f} s; {sum(case.outcome == EXPLAINED for case in cases)} of those that passed differ for a reason given above")
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""), flush=True)
    return 1 if failed or not passed else 0


def second(first, again):
    """The cases of a suite that was run again because some failed: what passes now did fail by chance."""
    failed = {case.name: case for case in first if case.outcome == FAILED}
    if len(again) < len(first):
        again = [*again, *(case for case in first if case.name not in {case.name for case in again})]
    return [
        case._replace(note=f"at the second try; at first: {failed[case.name].note}")
        if case.name in failed and case.outcome == PASSED
        else case
        for case in again
    ]


def compare(suite, reference, subject, newer=None, strict=False):
    """Cases from two runs of the same tests, each a dict of name to None or what failed.

    A test that fails on memcached in the same way says nothing about Larder, and is shown as such. `newer` gives
    the reason for tests in which memcached 1.6.45 differs from the release they were written for. With `strict`
    a test that fails on memcached is a wrong one, which counts as failed.
    """
    cases = []
    for name in dict.fromkeys([*(reference or {}), *subject]):
        bad = subject.get(name, "not run")
        before = None if reference is None else reference.get(name, "not run")
        if bad is None and before is None:
            cases.append(Case(suite, name, PASSED))
        elif bad is None:
            cases.append(Case(suite, name, FAILED, f"fails on memcached only: {before}"))
        elif before is not None and strict:
            cases.append(Case(suite, name, FAILED, f"a wrong test, it fails on memcached, too: {before}"))
        elif before is not None:
            cases.append(Case(suite, name, EXPLAINED, f"fails on memcached, too: {before}"))
        elif newer and name in newer:
            cases.append(Case(suite, name, EXPLAINED, newer[name]))
        else:
            cases.append(Case(suite, name, FAILED, bad))
    return cases
