#!/usr/bin/env python3
"""Sends the same random requests to two servers and compares the answers byte for byte.

    compat/differential.py --reference /usr/bin/memcached --subject target/release/larder

What is sent follows from --seed and, since cas ids are taken from answers, from the reference. At the
first difference it prints the seed, the shortest stream found that shows it, and both answers, writes that
stream to a file for --replay, and exits with 1. See compat/README.md.
"""

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed

from differ import rules, runner, selftest
from differ.servers import Server

WORK = os.path.join(os.path.dirname(os.path.abspath(__file__)), "work")


def short(data, limit=300):
    text = repr(data)[1:]
    return text if len(text) <= limit else f"{text[: limit - 60]}...({len(data)} bytes)...{text[-50:]}"


def show(programs, wraps, known, failure):
    """Prints a difference, shortened; returns whether it happens again when replayed."""
    print(f"DIFFERENCE: seed {failure.seed}, epoch {failure.epoch}, options {failure.options}, step {len(failure.steps)}")
    steps = runner.shorten(programs, wraps, failure.options, failure.steps, known)
    found = runner.play(programs, wraps, failure.options, steps, known)
    again = found is not None
    if not again:
        print("  it does not happen again when replayed (timing); as first seen:")
        found, steps = failure.difference, failure.steps[-1:]
    os.makedirs(WORK, exist_ok=True)
    path = os.path.join(WORK, f"difference-{failure.seed}-{failure.epoch}.json")
    runner.dump(path, failure.options, steps)
    for step in steps[-12:]:
        for number, _, pieces in step.lines:
            print(f"  {step.kind} {number}: " + "\n      | ".join(short(piece) for piece in pieces[:8]))
    for name, program, answer in zip(("reference", "subject"), programs, found.answers, strict=True):
        print(f"  {name} ({program}) answers: {short(answer, 500)}")
    first = next((i for i, (a, b) in enumerate(zip(*found.answers)) if a != b), min(map(len, found.answers)))
    if first > 100:
        print(f"  they part at byte {first}: {short(found.answers[0][first - 60 : first + 80])}")
        print(f"                  and: {short(found.answers[1][first - 60 : first + 80])}")
    print(f"  replay: compat/differential.py --replay {path}")
    return again


def known_rules(program, drift):
    server = Server(program)
    server.stop()
    return rules.applicable(server.version, drift)


def epochs(programs, drift, seed, numbers, commands, dialects):
    known = known_rules(programs[0], drift)
    explained, sent = {}, 0
    for number in numbers:
        done, failure = runner.run_epoch(programs, (None, None), seed, number, commands, known, dialects, explained)
        sent += done
        if failure:
            again = show(programs, (None, None), known, failure)
            if not again:
                # A second that began between two answers shows in both; the whole epoch decides.
                _, failure = runner.run_epoch(programs, (None, None), seed, number, commands, known, dialects, {})
                again = failure is not None
                if not again:
                    print(f"  epoch {number} again from its start: the same answers; a matter of time")
            sys.stdout.flush()
            if again:
                return sent, explained, 1
    return sent, explained, 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", default="/usr/bin/memcached")
    parser.add_argument("--subject", default="target/release/larder")
    parser.add_argument("--commands", type=int, default=1_000_000)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--epoch", type=int, help="play this epoch only")
    parser.add_argument("--jobs", type=int, default=1, help="pairs of servers at the same time")
    parser.add_argument("--dialect", default="text", help="text, meta, binary, or several with commas")
    parser.add_argument("--no-drift", action="store_true", help="do not apply the rules for what changed after 1.6.18")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first epoch that differs")
    parser.add_argument("--replay", metavar="FILE", help="play a stream written earlier")
    parser.add_argument("--self-test", action="store_true", help="check that differences are found")
    arguments = parser.parse_args()
    programs = (arguments.reference, arguments.subject)
    drift = not arguments.no_drift
    if arguments.self_test:
        return selftest.run(arguments.reference)
    if arguments.replay:
        options, steps = runner.load(arguments.replay)
        known = known_rules(programs[0], drift)
        found = runner.play(programs, (None, None), options, steps, known)
        if found is None:
            print("no difference")
            return 0
        show(programs, (None, None), known, runner.Failure("replay", 0, options, steps, found))
        return 1
    dialects = arguments.dialect.split(",")
    if not {"text", "meta", "binary"}.issuperset(dialects):
        parser.error(f"unknown dialect in {arguments.dialect}")
    count = -(-arguments.commands // runner.EPOCH)
    numbers = [arguments.epoch] if arguments.epoch is not None else list(range(count))
    size = min(arguments.commands, runner.EPOCH)
    began = time.monotonic()
    sent, explained, failed = 0, {}, 0
    with ProcessPoolExecutor(arguments.jobs) as pool:
        work = [pool.submit(epochs, programs, drift, arguments.seed, [number], size, dialects) for number in numbers]
        for future in as_completed(work):
            done, why, bad = future.result()
            sent += done
            failed += bad
            for name, times in why.items():
                explained[name] = explained.get(name, 0) + times
            if bad and not arguments.keep_going:
                for other in work:
                    other.cancel()
                break
    for rule in [*rules.RULES, rules.TEXTS, rules.WITHHELD]:
        if rule.name in explained:
            print(f"explained {explained[rule.name]:6}: {rule.name}: {rule.reason}")
    seconds = time.monotonic() - began
    print(
        f"differential: {sent} commands ({arguments.dialect}), seed {arguments.seed}, {failed} unexplained differences, "
        f"{sum(explained.values())} explained, {seconds:.0f} s; {programs[0]} and {programs[1]}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
