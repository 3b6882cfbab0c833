#!/usr/bin/env python3
"""Publishes versions of the model under a load of streams, and shows that nobody notices.

    swap_test.py [--seconds N] [--every S] [--sessions N] [--calm N] [--no-bad] [--no-kills] [--speed]
                 [--history FILE] [--result FILE]

Real services on a repository of their own; the two shipped checkpoints take turns as its next version. Clients
hold conversations about pictures without a pause. Phases: calm (no version comes); swaps, with broken versions in
between (a shard cut short, a wrong digest, weights that are no numbers); and, in a history of its own, SIGKILL of
the language service while it loads. Printed: the longest gap of a stream, the 99th percentile between two pieces
of text with and without swaps, and the time from publishing to the first text by the new version, with the time
that loading itself took. Ends with 1 if the histories have a violation (history.py), if a broken version is served
or a good one is not; with --speed also if a gap is above 500 ms, the percentile above twice the calm one, or the
first text later than 2 s beyond loading."""
import argparse
import json
import pathlib
import shutil
import signal
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
import setup_python  # noqa: E402

setup_python.need("grpc")
import grpc  # noqa: E402

import history  # noqa: E402
from clients import PATIENCE, PICTURES, QUESTIONS, Chatter, Recorder  # noqa: E402
from stack import ROOT, SLOWDOWN, Stack, run  # noqa: E402 (neighbours that clients.py finds)
from versions import cut_short, no_numbers, publish_copy, wrong_digest  # noqa: E402

SOURCES = [ROOT / "deploy/models" / name / "1" for name in ("emoji", "emoji-base")]
TOWER = ROOT / "deploy/models/emoji-tower"
NAME = "emoji"
TOKENS = 80
STATES = ["UNSPECIFIED", "AVAILABLE", "LOADING", "WARMING", "READY", "DRAINING", "UNLOADED", "FAILED"]


class Repository:
    """A model repository of the test's own."""

    def __init__(self, root):
        self.root = pathlib.Path(root)
        (self.root / NAME).mkdir(parents=True)
        shutil.copytree(TOWER, self.root / "emoji-tower")

    def versions(self):
        return sorted(int(each.name) for each in (self.root / NAME).iterdir() if each.name.isdigit())

    def publish(self, source):
        """As a trainer does it. Returns the version."""
        run("llava-model", "publish", source, "--repository", self.root, "--name", NAME)
        return self.versions()[-1]

    def published(self, version):
        """When that was renamed to its number, by the monotonic clock: before the publisher's end."""
        return (self.root / NAME / str(version)).stat().st_ctime - time.time() + time.monotonic()

    def publish_broken(self, source, damage):
        """A version that no publisher would let through: files as `damage` leaves them."""
        version = self.versions()[-1] + 1
        publish_copy(source, self.root / NAME, version, damage)
        return version


DAMAGES = [cut_short, wrong_digest, no_numbers]


class Watcher(threading.Thread):
    """Notes when each version was first seen in each state, and with which message, by asking the language service again and
    again."""

    def __init__(self, stack):
        super().__init__(daemon=True)
        self.stack, self.seen, self.last, self.over = stack, {}, {}, threading.Event()
        self.start()

    def run(self):
        models = self.stack.client("llm", "llava.v1.ModelService")
        request = models.new("GetModelStatusRequest", model={"name": NAME})
        while not self.over.wait(0.025):
            try:
                versions = models.GetModelStatus(request, timeout=10 * SLOWDOWN).versions
            except grpc.RpcError:
                continue
            now = time.monotonic()
            for each in versions:
                state = STATES[each.state]
                self.last[each.model.version] = (state, each.message)
                self.seen.setdefault((each.model.version, state), (now, each.message))

    def wait_for(self, version, *states):
        """The state reached and its message; (None, last seen) when time is up."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for state in states:
                if found := self.seen.get((version, state)):
                    return state, found[1]
            time.sleep(0.02)
        return None, str(self.last.get(version))

    def end(self):
        self.over.set()
        self.join()


class Load:
    """Clients that chat without a pause, and when their text came."""

    def __init__(self, chat, sessions, recorder, prefix, forgiving=False):
        self.chat, self.recorder, self.prefix, self.forgiving = chat, recorder, prefix, forgiving
        self.over = threading.Event()
        self.lock = threading.Lock()
        self.gaps = []      # (when, seconds)
        self.answers = {}   # version -> time of its first text
        self.turns = self.lost = 0
        self.problems = []
        self.threads = [threading.Thread(target=self.run, args=(each,)) for each in range(sessions)]
        for thread in self.threads:
            thread.start()

    def run(self, client):
        rounds = 0
        while not self.over.is_set():
            try:
                self.converse(f"{self.prefix}-{client}-{rounds}", (client + rounds) % len(PICTURES))
            except grpc.RpcError as error:
                if not self.forgiving:
                    self.problems.append(f"{self.prefix}: {error.code().name}: {error.details()}")
                    return
                self.lost += 1
            rounds += 1

    def converse(self, name, picture):
        chatter = Chatter(self.chat, name, self.recorder, name, temperature=0, max_new_tokens=TOKENS)
        try:
            for number, text in enumerate(QUESTIONS):
                last = [None]

                def on_byte(_):
                    now = time.monotonic()
                    if last[0] is not None:
                        with self.lock:
                            self.gaps.append((now, now - last[0]))
                    last[0] = now

                chatter.ask(text, 7, PICTURES[picture] if number == 0 else None, on_byte=on_byte)
                with self.lock:
                    self.turns += 1
                if self.over.is_set():
                    break
        finally:
            chatter.note_stored()

    def end(self):
        self.over.set()
        for thread in self.threads:
            thread.join()


def first_texts(events, times):
    """Version -> when its first text was seen."""
    versions, found = {}, {}
    for event, when in zip(events, times):
        if event["kind"] == "started":
            versions[event["turn"]] = event["version"][1]
        elif event["kind"] == "text":
            found.setdefault(versions[event["turn"]], when)
    return found


class TimedRecorder(Recorder):
    def __init__(self):
        super().__init__()
        self.times = []
        self.news = threading.Condition(self.lock)

    def add(self, **event):
        with self.lock:
            self.events.append(event)
            self.times.append(time.monotonic())
            self.news.notify_all()

    def wait_for(self, seen):
        """Whether there is an event at last for which `seen(event, when)` holds."""
        place, deadline = 0, time.monotonic() + PATIENCE
        with self.lock:
            while time.monotonic() < deadline:
                for place in range(place, len(self.events)):
                    if seen(self.events[place], self.times[place]):
                        return True
                place = len(self.events)
                self.news.wait(1)
        return False

    def wait_for_text_of(self, version):
        turns = set()  # that this version answers

        def seen(event, _):
            if event["kind"] == "started" and event["version"][1] == version:
                turns.add(event["turn"])
            return event["kind"] == "text" and event["turn"] in turns

        return self.wait_for(seen)


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def in_ms(seconds):
    return f"{1000 * seconds:.0f} ms"


def run_swaps(stack, repository, watcher, arguments, problems):
    """The calm phase and the swaps; what was measured."""
    recorder = TimedRecorder()
    load = Load(stack.chat(), arguments.sessions, recorder, "swap")
    time.sleep(arguments.calm)
    calm_until = time.monotonic()
    published, bad = {}, 0
    deadline = calm_until + arguments.seconds
    turn = 0
    while time.monotonic() < deadline:
        next_one = time.monotonic() + arguments.every
        turn += 1
        version = repository.publish(SOURCES[turn % len(SOURCES)])
        published[version] = repository.published(version)
        if arguments.bad:
            state, message = watcher.wait_for(version, "READY", "FAILED")
            if state == "READY":
                damage = DAMAGES[bad % len(DAMAGES)]
                bad += 1
                broken = repository.publish_broken(SOURCES[turn % len(SOURCES)], damage)
                state, message = watcher.wait_for(broken, "FAILED", "READY")
                if state != "FAILED" or not message:
                    problems.append(f"version {broken} ({damage.__name__}) is {state}: {message}")
                else:
                    print(f"version {broken} ({damage.__name__}): {message}")
        recorder.wait_for_text_of(version)  # else the next one may take its turns
        time.sleep(max(0.0, next_one - time.monotonic()))
    last = max(published)
    state, message = watcher.wait_for(last, "READY", "FAILED")
    if state != "READY":
        problems.append(f"version {last} is {state}: {message}")
    load.end()
    problems += load.problems
    problems += history.violations(recorder.events) + history.swap_violations(recorder.events)
    firsts = first_texts(recorder.events, recorder.times)
    rows = []
    for version, when in published.items():
        if version not in firsts:
            problems.append(f"version {version} never answered")
            continue
        begun, ready = watcher.seen.get((version, "LOADING")), watcher.seen.get((version, "READY"))
        loading = ready[0] - begun[0] if begun and ready else 0.0
        rows.append((version, firsts[version] - when, loading))
    calm = [gap for when, gap in load.gaps if when < calm_until]
    swaps = [gap for when, gap in load.gaps if when >= calm_until]
    result = {
        "sessions": arguments.sessions, "turns": load.turns, "events": len(recorder.events),
        "versions": len(published), "broken_versions": bad,
        "pieces": {"calm": len(calm), "swaps": len(swaps)},
        "largest_gap_s": {"calm": max(calm, default=0), "swaps": max(swaps, default=0)},
        "p99_gap_s": {"calm": percentile(calm, 0.99), "swaps": percentile(swaps, 0.99)},
        "publish_to_first_text_s": max((total for _, total, _ in rows), default=0),
        "beyond_loading_s": max((total - loading for _, total, loading in rows), default=0),
    }
    print(f"{load.turns} turns in {arguments.sessions} streams, {len(published)} versions published, {bad} broken ones; "
          f"{len(recorder.events)} events")
    for phase in ("calm", "swaps"):
        print(f"{phase}: {result['pieces'][phase]} pieces of text, largest gap {in_ms(result['largest_gap_s'][phase])}, "
              f"p99 {in_ms(result['p99_gap_s'][phase])}")
    print("from publishing to the first text (loading): " +
          ", ".join(f"{version}: {in_ms(total)} ({in_ms(loading)})" for version, total, loading in rows))
    if arguments.history:
        pathlib.Path(arguments.history).write_text(
            "".join(json.dumps(event) + "\n" for event in recorder.events), encoding="utf-8")
    if arguments.speed:
        if result["largest_gap_s"]["swaps"] > 0.5:
            problems.append(f"a stream paused for {in_ms(result['largest_gap_s']['swaps'])}, allowed are 500 ms")
        if result["p99_gap_s"]["swaps"] > 2 * result["p99_gap_s"]["calm"]:
            problems.append("the 99th percentile between two pieces of text is more than twice the calm one")
        if result["beyond_loading_s"] > 2:
            problems.append(f"a version answered {in_ms(result['beyond_loading_s'])} after loading, allowed are 2 s")
    return result


def run_kills(stack, repository, watcher, arguments, problems):
    """SIGKILL of the language service at several moments of a load. Answers of a version that is gone end as
    interrupted; all else goes on, and the new version is served."""
    recorder = TimedRecorder()
    load = Load(stack.chat(), max(2, arguments.sessions // 4), recorder, "kill", forgiving=True)
    for number, delay in enumerate((0.0, 0.05, 0.2)[:arguments.kills]):
        version = repository.publish(SOURCES[number % len(SOURCES)])
        time.sleep(delay)
        old = stack.llm
        old.process.send_signal(signal.SIGKILL)
        old.process.wait()
        stack.start("llm")
        state, message = watcher.wait_for(version, "READY", "FAILED")
        if state != "READY":
            problems.append(f"version {version} is {state} after a kill: {message}")
        revived = time.monotonic()
        if not recorder.wait_for(lambda event, when: event["kind"] == "finished" and when > revived):
            problems.append("after a kill no answer ends any more")
    load.end()
    problems += history.violations(recorder.events)
    for event in recorder.events:
        if event["kind"] == "failed" and event["code"] not in ("FAILED_PRECONDITION", "UNAVAILABLE"):
            problems.append(f"after a kill turn {event['turn']} ended with {event['code']}")
    print(f"{arguments.kills} kills while loading: {load.turns} turns ended, {load.lost} conversations broke off")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=12, help="of swaps")
    parser.add_argument("--every", type=float, default=4, help="seconds between two versions")
    parser.add_argument("--sessions", type=int, default=16)
    parser.add_argument("--calm", type=float, default=4, help="seconds before the first swap")
    parser.add_argument("--no-bad", dest="bad", action="store_false")
    parser.add_argument("--no-kills", dest="kills", action="store_const", const=0, default=2)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--history", help="write what the clients saw of the swaps to this file")
    parser.add_argument("--result", help="write the figures to this file")
    arguments = parser.parse_args()
    problems = []
    with tempfile.TemporaryDirectory(prefix="llava-swap-") as folder:
        repository = Repository(pathlib.Path(folder) / "models")
        repository.publish(SOURCES[0])
        with Stack(llm_model=repository.root / NAME, tower_model=repository.root / "emoji-tower") as stack:
            watcher = Watcher(stack)
            try:
                result = run_swaps(stack, repository, watcher, arguments, problems)
                if arguments.kills:
                    run_kills(stack, repository, watcher, arguments, problems)
            finally:
                watcher.end()
            if problems:
                for name, service in stack.services.items():
                    print(f"--- {name}: exit {service.process.poll()}\n{service.text()[-3000:]}")
    if arguments.result:
        pathlib.Path(arguments.result).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print("\n".join(problems[:50]) or "no violation")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
