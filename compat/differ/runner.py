"""Makes epochs (one run of two servers each), plays them, compares, and shortens what differs."""

import json
import random as randomness
import time
from typing import NamedTuple

from . import drift, rules
from .binary import Binary
from .keys import Keys
from .meta import Meta
from .servers import Pair
from .text import Text

OPTIONS = [[], [], ["-C"], ["-R", "1"], ["-D", ":"], ["-t", "4"], ["-M"], ["-n", "200"], ["-f", "1.08"]]
LASTING = 4
CROWD = 6
# The first of the lasting connections that speak binary.
BINARY = 100
EPOCH = 20_000


class Step(NamedTuple):
    """What is sent before answers are compared.

    kind: pipeline (lasting connection), crowd (several at once), leave (new connections, ended by us)
    lines: (connection, commands, pieces) each; pieces are the commands' bytes as they are written
    """

    kind: str
    lines: list


class Difference(Exception):
    def __init__(self, step, commands, answers):
        super().__init__("the answers differ")
        self.step, self.commands, self.answers = step, commands, answers


class Player:
    """Plays steps against a pair of servers and compares."""

    def __init__(self, pair, known, explained):
        self.pair, self.known, self.explained = pair, known, explained
        self.drifts = any(rule.reference != "all" for rule in known)

    def play(self, step):
        """Plays one step; returns the reference's answers."""
        if step.kind == "leave":
            return [self._compare(step, line, self.pair.ask_and_leave(line[2])) for line in step.lines]
        for number, _, pieces in step.lines:
            self.pair.tell(number, pieces, number >= BINARY)
        heard = [self.pair.hear(number, number >= BINARY) for number, _, _ in step.lines]
        return [self._compare(step, line, answers) for line, answers in zip(step.lines, heard, strict=True)]

    def _compare(self, step, line, answers):
        reference, subject = answers
        # A wild command without a line end may have become one with the next.
        commands = [b"".join(line[1])] if b"".join(line[1]).count(b"\n") == 1 else line[1]
        binary = line[1][0].startswith(b"\x80")
        if binary:
            reference, subject = map(rules.packets, answers)
        else:
            reference, subject = map(rules.timeless, answers)
        if reference == subject and not reference.endswith((b"<silence>", b"<closed>")):
            return answers[0]
        if self.drifts and drift.same_but_for_texts(reference, subject):
            self.explained[rules.TEXTS.name] = self.explained.get(rules.TEXTS.name, 0) + 1
            return answers[0]
        if len(commands) == 1:
            command = commands[0]
            reference, subject = (
                rules.normal(command, answer, server)
                for answer, server in zip(answers, self.pair.servers, strict=True)
            )
            if reference == subject or (self.drifts and drift.same_but_for_texts(reference, subject)):
                return answers[0]
            answers = [reference, subject]
            for rule in self.known:
                if rule.matches(command) and rule.explains(command, reference, subject):
                    self.explained[rule.name] = self.explained.get(rule.name, 0) + 1
                    return reference
        elif step.kind == "leave" and subject.startswith(reference) and not drift.is_old(self.pair.servers[0].version):
            # Answers that memcached has ready but holds back while it skips a refused value are lost when
            # the client ends its side. Only for pipelines that end amid a value.
            self.explained[rules.WITHHELD.name] = self.explained.get(rules.WITHHELD.name, 0) + 1
            return reference
        if not all(server.alive() for server in self.pair.servers):
            answers = [a if s.alive() else a + b"<dead>" for a, s in zip(answers, self.pair.servers, strict=True)]
        raise Difference(step, commands, answers)


def counts(command):
    return b"incr" in command or b"decr" in command


def swallows(command):
    """Whether a damaged store may ask for more than will ever be sent."""
    return any(word.isdigit() and 60_000 < int(word) < 1 << 31 for word in rules.words(command))


class Epoch:
    """The steps of one run of the servers, made one at a time, since cas ids come from answers."""

    def __init__(self, seed, number, known, dialects):
        self.random = random = randomness.Random(f"{seed}/{number}")
        self.known = known
        # Without cas ids 1.6.18 forgets what is stored in the second of a flush, and lets any id pass.
        self.options = random.choice([options for options in OPTIONS if options != ["-C"] or not self.drifts()])
        # memcached holds items that wait to be moved by its maintainer, and items another thread has just sent;
        # a counter that shrinks meanwhile is stored anew rather than padded. So counters shrink only without both.
        shrink = random.random() < 0.7
        if shrink:
            self.options = [*self.options, "-t", "1", "-o", "no_lru_maintainer"]
        self.keys = Keys(random, apart=not shrink)
        self.text = Text(random, self.keys, shrink)
        self.crowd = [Text(random, Keys(random, b"c%d_" % number, not shrink), shrink) for number in range(CROWD)]
        self.pending = []
        self.sets = {"text": self.text}
        for name, kind in (("meta", Meta), ("binary", Binary)):
            if name in dialects:
                self.sets[name] = kind(random, self.keys, shrink, self.text)
        if self.drifts():
            for commands in self.sets.values():
                commands.cas = drift.Unknown()
        self.dialects = [name for name in self.sets if name in dialects]

    def learn(self, answers):
        """Remembers the cas ids a reference has given."""
        for answer in answers:
            for commands in self.sets.values():
                commands.learn(answer)

    def forbidden(self, command):
        return any(rule.explains is None and rule.matches(command) for rule in self.known)

    def special(self, command):
        """Whether a command must be sent by itself."""
        if any(rule.matches(command) for rule in self.known):
            return True
        if command.startswith(b"\x80"):
            return command[1] in (0x08, 0x10, 0x18, 0x20, 0x21, 0x22) or len(command) > 60_000
        if command.startswith((b"stats", b"version", b"shutdown", b"flush_all", b"watch", b"lru_crawler m")) or len(command) > 60_000:
            return True
        return len(rules.line_of(command)) > 2000 and not command.startswith((b"get ", b"gets "))

    def pieces(self, data, odds):
        """Cuts bytes into the pieces they are written in."""
        random = self.random
        if random.random() > odds or len(data) < 2:
            return [data]
        cuts = sorted({random.randrange(1, len(data)) for _ in range(random.choice([1, 1, 2, 5, 20]))})
        return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]

    def many(self, text, count, odd):
        """Commands for one pipeline; those that must be alone are left for later.

        A counter that shrinks keeps its length, padded with blanks, unless a reader still holds it: with
        memcached an unsent answer does. So no counter is read and counted in one pipeline.
        """
        random = self.random.random
        made, size, held = [], 0, set()
        while len(made) < count and size < 50_000:
            command = text.lone() if random() < odd else text.command()
            start = command[:4]
            counted = start in (b"incr", b"decr") and not held.isdisjoint(rules.words(command)[1:2])
            if start in (b"get ", b"gets", b"gat ", b"gats"):
                held.update(rules.words(command))
            elif start[:3] in (b"mg ", b"ma ") or start[:1] == b"\x80":
                key, counts_it = rules.subject(command)
                counted = counts_it and key in held
                held.add(key)
            if counted or self.special(command):
                if not self.forbidden(command) and len(self.pending) < 3:
                    self.pending.append(command)
                continue
            made.append(command)
            size += len(command)
        return made

    def next(self):
        random = self.random
        if self.pending:
            return self.alone(self.pending.pop())
        name = random.choice(self.dialects)
        commanding = self.sets[name]
        kind = random.random()
        if kind < 0.55:
            commands = self.many(commanding, random.randrange(1, 80), 0.06)
            if not commands:
                return self.next()
            pieces = self.pieces(b"".join(commands), 0.3)
            return Step("pipeline", [(self.number(commands[0]), commands, pieces)])
        if kind < 0.62 and name == "text":
            lines = []
            for number, text in enumerate(self.crowd):
                commands = [c for c in self.many(text, 15, 0) if not c.startswith((b"gets", b"gats", b"cas"))]
                lines.append((LASTING + number, commands, self.pieces(b"".join(commands), 0.3)))
            return Step("crowd", lines)
        if kind < 0.75:
            while self.forbidden(command := commanding.lone()):
                pass
            return self.alone(command)
        if self.drifts() and name != "binary":
            # Where the two part after something wrong is not for this to tell.
            return self.next()
        while self.forbidden(command := commanding.wild()):
            pass
        commands = [command]
        if name == "text" and not self.drifts() and not self.special(command) and not swallows(command):
            # No counter behind others: the answer to one of them may still hold it, see `many`.
            while random.random() < 0.5 and not counts(command := self.text.command()):
                commands.append(command)
        return Step("leave", [(0, commands, self.pieces(b"".join(commands), 0.5 if len(commands) > 1 else 0.3))])

    def number(self, command):
        """A lasting connection for commands like this one."""
        return self.random.randrange(LASTING) + (BINARY if command.startswith(b"\x80") else 0)

    def drifts(self):
        return any(rule.reference != "all" for rule in self.known)

    def alone(self, command):
        if command.startswith(b"flush_all") and rules.words(command)[1:] in ([], [b"0"], [b"-1"], [b"-"], [b"noreply"], [b"0", b"noreply"]):
            # Look at every key, so that what is dead is gone before another flush could show it again.
            keys = [key for key in self.keys.distinct() if not (self.drifts() and b"\0" in key)]
            self.pending.append(b"get " + b" ".join(keys) + b"\r\n")
        pieces = [command] if len(command) > 2000 and b"\n" not in command[:2000] else self.pieces(command, 0.2)
        return Step("pipeline", [(self.number(command), [command], pieces)])


def play(programs, wraps, options, steps, known):
    """Plays recorded steps from the start; returns the first difference, or None."""
    with Pair(programs, options, wraps) as pair:
        player = Player(pair, known, {})
        for step in steps:
            try:
                player.play(step)
            except Difference as difference:
                return difference
    return None


def shorten(programs, wraps, options, steps, known, seconds=90):
    """Takes steps, then commands, away as long as a difference remains."""
    deadline = time.monotonic() + seconds

    def fails(steps):
        return time.monotonic() < deadline and play(programs, wraps, options, steps, known) is not None

    def reduce(parts, build):
        size = max(len(parts) // 2, 1)
        while True:
            start = 0
            while start < len(parts):
                fewer = parts[:start] + parts[start + size :]
                if fewer and fails(build(fewer)):
                    parts = fewer
                else:
                    start += size
            if size == 1:
                return parts
            size //= 2

    if not fails(steps):
        return steps
    for tail in (1, 8, 64):
        if fails(steps[-tail:]):
            steps = steps[-tail:]
            break
    steps = reduce(steps, lambda steps: steps)
    for index, step in enumerate(steps):
        if len(step.lines) == 1 and len(step.lines[0][1]) > 1:
            number, commands, _ = step.lines[0]

            def rebuilt(commands, index=index, step=step, number=number):
                line = (number, commands, [b"".join(commands)])
                return [*steps[:index], Step(step.kind, [line]), *steps[index + 1 :]]

            if fails(rebuilt(commands)):
                steps = rebuilt(reduce(commands, rebuilt))
    return steps


def dump(path, options, steps):
    """Writes steps to a file that --replay takes."""
    text = [
        [step.kind, [[n, [c.decode("latin-1") for c in cs], [p.decode("latin-1") for p in ps]] for n, cs, ps in step.lines]]
        for step in steps
    ]
    with open(path, "w", encoding="ascii") as file:
        json.dump({"options": options, "steps": text}, file)


def load(path):
    with open(path, encoding="ascii") as file:
        read = json.load(file)
    steps = [
        Step(kind, [(n, [c.encode("latin-1") for c in cs], [p.encode("latin-1") for p in ps]) for n, cs, ps in lines])
        for kind, lines in read["steps"]
    ]
    return read["options"], steps


class Failure(NamedTuple):
    seed: str
    epoch: int
    options: list
    steps: list
    difference: Difference


def run_epoch(programs, wraps, seed, number, commands, known, dialects, explained):
    """One epoch; returns how many commands were sent, and a Failure or None."""
    epoch = Epoch(seed, number, known, dialects)
    steps, sent = [], 0
    with Pair(programs, epoch.options, wraps) as pair:
        player = Player(pair, known, explained)
        while sent < commands:
            step = epoch.next()
            steps.append(step)
            sent += sum(len(line[1]) for line in step.lines)
            try:
                epoch.learn(player.play(step))
            except Difference as difference:
                return sent, Failure(seed, number, epoch.options, steps, difference)
    return sent, None
