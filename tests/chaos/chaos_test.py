#!/usr/bin/env python3
"""Kills the gateway and the language service in the middle of answers, over and over, and shows that nobody
notices: every answer is, byte for byte, that of a run without kills with the same seed, and the history of
what the clients saw has no violation.

    chaos_test.py [--kills N] [--parallel N] [--seed N] [--history FILE] [--failpoints]

A kill is a SIGKILL when a random byte of an answer has arrived, of the gateway, of the language service, or of
both. Sampled answers (temperature 1) in float32, so that a wrong seed, position or prefix shows. Then --parallel
clients of two API keys ask at once, each key with a second client in a session of its first one, and look for each
other's sessions, while both services are killed. At the end the gateway
is killed again and again while the language service is away, which no answer may be blamed for. With --failpoints
the gateway also kills itself at each of its failpoints, and whenever it takes a certain answer up, which must end as
given up, with its text (a build with LLAVA_FAILPOINTS=ON)."""
import argparse
import json
import pathlib
import random
import signal
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
import setup_python  # noqa: E402

setup_python.need("grpc")
import grpc  # noqa: E402

import crowd  # noqa: E402
import history  # noqa: E402
from clients import KEYS, PICTURES, QUESTIONS, Chatter, Recorder, secret_of, write_keys  # noqa: E402
from stack import SLOWDOWN, Stack  # noqa: E402 (a neighbour that clients.py finds)


def conversation(chat, name, recorder, seed, on_turn=None):
    """Three questions about a picture; the texts of the answers. `on_turn` makes the on_byte of each."""
    chatter = Chatter(chat, name, recorder, KEYS[0])
    answers = []
    for number, text in enumerate(QUESTIONS):
        picture = PICTURES[seed % len(PICTURES)] if number == 0 else None
        extra = {"on_byte": on_turn()} if on_turn else {}
        answers.append(chatter.ask(text, seed + number, picture, **extra))
        chatter.note_stored()
    return answers


# Where a gateway can be told to kill itself: server/runtime/failpoint.h.
FAILPOINTS = ["store.commit", "store.committed", "journal.write", "journal.written", "stream.send",
              "backend.generate", "backend.event"]


class Suicide:
    """A gateway that kills itself at the n-th visit of a failpoint, and one without after it."""

    def __init__(self, stack, point, visit):
        self.stack = stack
        stack.gateway.stop()
        self.gateway = stack.start("gateway", environment={"LLAVA_FAILPOINTS": f"{point}=kill@{visit}"})
        self.watcher = threading.Thread(target=self.watch)
        self.watcher.start()

    def watch(self):
        self.gateway.process.wait()
        self.stack.start("gateway")

    def end(self):
        """Leaves an ordinary gateway. False: the failpoint was never met."""
        died = self.gateway.stop() == -signal.SIGKILL
        self.watcher.join()
        return died


class Killer:
    """Kills at most once a turn, at a byte drawn before."""

    def __init__(self, stack, draw, longest):
        self.stack, self.draw, self.longest, self.kills = stack, draw, longest, []
        self.reviver = None

    def turn(self):
        at = self.draw.randrange(self.longest)
        which = self.draw.choice((("gateway",), ("llm",), ("llm", "gateway")))
        done = []

        def on_byte(count):
            if count <= at or done:
                return
            done.append(True)
            self.rest()  # of the turn before
            self.kill(at, which)

        return on_byte

    def kill(self, at, which):
        self.kills.append((at, which))
        for name in which:
            self.stack.services[name].process.send_signal(signal.SIGKILL)
        # While they start, the client is in its stream: it sees what a client sees.
        self.reviver = threading.Thread(target=self.revive, args=(which,))
        self.reviver.start()

    def revive(self, which):
        for name in which:
            self.stack.services[name].process.wait()
            self.stack.start(name)

    def is_reviving(self):
        return self.reviver is not None and self.reviver.is_alive()

    def rest(self):
        """Until all that was killed is there again."""
        if self.reviver:
            self.reviver.join()


class AtByte:
    """Runs `step` on a thread of its own once so many bytes have come."""

    def __init__(self, byte, step):
        self.byte, self.step, self.thread = byte, step, None

    def __call__(self, count):
        if count > self.byte and not self.thread:
            self.thread = threading.Thread(target=self.step)
            self.thread.start()


def run_outage(stack, chat, recorder, expected, problems):
    """The gateway dies three times while there is no language service to go on with the answer."""

    def outage():
        llm = stack.llm
        llm.process.kill()
        llm.process.wait()
        for _ in range(3):
            stack.gateway.process.kill()
            stack.gateway.process.wait()
            stack.start("gateway")
            time.sleep(0.5 * SLOWDOWN)
        stack.start("llm")

    at_byte = AtByte(100, outage)
    answers = conversation(chat, "outage", recorder, 0, lambda: at_byte)
    at_byte.thread.join()
    if answers != expected:
        problems.append("an answer differs after three deaths of the gateway without a language service")


def run_given_up(stack, chat, recorder, problems):
    """An answer over which the gateway dies whenever it takes it up."""
    deaths, ended = [], threading.Event()

    def dies_of_it():
        gateway = stack.gateway
        gateway.process.kill()
        gateway.process.wait()
        while len(deaths) < 5:
            try:
                stack.start("gateway", environment={"LLAVA_FAILPOINTS": "turn.take_up=kill"})
            except AssertionError:  # died before it listened
                pass
            while stack.gateway.process.poll() is None:
                if ended.wait(0.05):
                    return
            deaths.append(stack.gateway.process.wait())

    at_byte = AtByte(100, dies_of_it)
    chatter = Chatter(chat, "given up", recorder, KEYS[0])
    try:
        chatter.ask(QUESTIONS[1], 1, PICTURES[0], on_byte=at_byte)
        problems.append("an answer that kills the gateway ended well")
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.INTERNAL or "given up" not in error.details():
            problems.append(f"an answer that kills the gateway ended with {error.code().name}: {error.details()}")
    ended.set()
    at_byte.thread.join()
    if deaths != [-signal.SIGKILL] * 2:
        problems.append(f"the gateway died {deaths} of one answer: twice was to be expected")
    chatter.ask(QUESTIONS[0], 2)
    chatter.note_stored()
    print(f"an answer over which the gateway died {len(deaths)} times was given up")


def run_failpoints(stack, chat, recorder, expected, draw, problems):
    for point in FAILPOINTS:
        for visit in (1, draw.randrange(2, 20), draw.randrange(20, 100)):
            suicide = Suicide(stack, point, visit)
            answers = conversation(chat, f"{point}@{visit}", recorder, 0)
            died = suicide.end()
            print(f"{point} at visit {visit}: {'killed' if died else 'not met'}")
            if visit == 1 and not died:
                problems.append(f"failpoint {point} is never met: is this a build with LLAVA_FAILPOINTS=ON?")
            if answers != expected[0]:
                problems.append(f"an answer differs after {point} at visit {visit}")


def run(kills, seed, path=None, failpoints=False, parallel=8):
    draw = random.Random(seed)
    recorder = Recorder()
    problems = []
    with tempfile.TemporaryDirectory() as folder, \
            Stack(gateway=["--keys-file", write_keys(pathlib.Path(folder) / "keys.yaml")],
                  llm=["--dtype", "float32", "--kv-type", "float32"]) as stack:
        chats = {key: stack.chat(secret_of(key)) for key in KEYS}
        chat = chats[KEYS[0]]
        expected = {}
        for each in range(2):
            expected[each] = conversation(chat, f"calm{each}", recorder, each)
        longest = min(len(a.encode()) for answers in expected.values() for a in answers)
        killer = Killer(stack, draw, longest)
        begin = time.monotonic()
        rounds = 0
        while len(killer.kills) < kills:
            each = rounds % 2
            try:
                answers = conversation(chat, f"chaos{rounds}", recorder, each, killer.turn)
            except grpc.RpcError:
                print(f"round {rounds}, after {killer.kills[-3:]}:")
                for name, service in stack.services.items():
                    print(f"--- {name}: exit {service.process.poll()}\n{service.text()[-2000:]}")
                raise
            for number, (got, want) in enumerate(zip(answers, expected[each])):
                if got != want:
                    problems.append(f"round {rounds}, turn {number + 1}: the answer differs after {killer.kills[-3:]}")
            rounds += 1
        killer.rest()
        print(f"{len(killer.kills)} kills in {3 * rounds} answers of about {longest} bytes, "
              f"{time.monotonic() - begin:.0f} s: " + ", ".join(
                  f"{sum(w == which for _, w in killer.kills)} of {' and '.join(which)}"
                  for which in (("gateway",), ("llm",), ("llm", "gateway"))))
        for _ in range(1 + kills // 40 if parallel else 0):
            crowd.run(chats, recorder, expected, Killer(stack, draw, longest), parallel, problems)
        run_outage(stack, chat, recorder, expected[0], problems)
        if failpoints:
            run_given_up(stack, chat, recorder, problems)
            run_failpoints(stack, chat, recorder, expected, draw, problems)
        print(f"{len(recorder.events)} events in the history")
    if path:
        pathlib.Path(path).write_text("".join(json.dumps(e) + "\n" for e in recorder.events), encoding="utf-8")
    return problems + history.violations(recorder.events)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=9)
    parser.add_argument("--parallel", type=int, default=8, metavar="N", help="clients at once; 0: leave that part out")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--history", help="write what the clients saw to this file")
    parser.add_argument("--failpoints", action="store_true")
    arguments = parser.parse_args()
    problems = run(arguments.kills, arguments.seed, arguments.history, arguments.failpoints, arguments.parallel)
    print("\n".join(problems) or "no violation, all texts equal")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
