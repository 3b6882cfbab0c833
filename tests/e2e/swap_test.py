"""Versions of the language model are replaced under running streams: whoever asks next is answered by the
new one, answers under way end by theirs, the old one is freed, and nobody sees an error."""
import datetime
import pathlib
import tempfile
import threading
import time
import unittest

import grpc
from chat_case import ChatCase
from stack import ROOT, SLOWDOWN, TOWER_MODEL, Stack, run, until

STREAMS = 4


class Streamer(threading.Thread):
    """Asks one long answer after the other until it is stopped, and keeps what it saw."""

    def __init__(self, test, text, tokens):
        super().__init__()
        self.test, self.text, self.end = test, text, threading.Event()
        self.tokens = tokens
        self.session = self.new_session()
        self.turns, self.errors = [], []
        self.gaps = []  # between two pieces of one answer: (begin, end)

    def new_session(self):
        return self.test.session(sampling={"temperature": 0, "max_new_tokens": self.tokens, "ignore_eos": True})

    def run(self):
        chat = self.test.chat
        while not self.end.is_set():
            begin, announced, last = time.monotonic(), 0, None
            try:
                for response in chat.Chat(chat.new("ChatRequest", session_id=self.session, text=self.text),
                                          timeout=300 * SLOWDOWN):
                    event = response.event
                    kind, now = event.WhichOneof("event"), time.monotonic()
                    if kind == "turn_started":
                        announced = event.turn_started.model.version
                    elif kind == "turn_finished":
                        self.turns.append((begin, now, announced, event.turn_finished.model.version,
                                           event.turn_finished.reason))
                    elif last is not None:
                        self.gaps.append((last, now))
                    if kind == "text":
                        last = now
            except grpc.RpcError as error:
                self.errors.append((error.code(), error.details()))
            self.session = self.new_session()


class Pulse(threading.Thread):
    """Asks the gateway what the language service has no part in; the longest silence is the machine's."""

    def __init__(self, chat):
        super().__init__()
        self.chat, self.end, self.longest_silence = chat, threading.Event(), 0.0

    def run(self):
        last = time.monotonic()
        while not self.end.wait(0.01):
            self.chat.ListSessions(self.chat.new("ListSessionsRequest"), timeout=300 * SLOWDOWN)
            now = time.monotonic()
            self.longest_silence = max(self.longest_silence, now - last)
            last = now


def monotonic(seconds):
    """A time of the system's clock by the monotonic one."""
    return seconds - time.time() + time.monotonic()


class SwapTest(ChatCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory(prefix="llava-swap-")
        cls.models = pathlib.Path(cls.temporary.name) / "models"
        size = sum(file.stat().st_size for file in cls.publish("emoji-base").iterdir())
        # Loading takes long enough to tell whether streams wait for it.
        cls.stack = Stack(llm_model=cls.models / "emoji", llm=["--load-rate", size // 3])
        cls.stack.__enter__()
        cls.chat = cls.stack.chat()
        cls.service = cls.stack.client("llm", "llava.v1.ModelService")

    @classmethod
    def tearDownClass(cls):
        cls.stack.__exit__()
        cls.temporary.cleanup()

    @classmethod
    def publish(cls, name):
        """A shipped checkpoint as the next version of "emoji"; its folder."""
        done = run("llava-model", "import", ROOT / "deploy/models" / name / "1", "--repository", cls.models, "--name", "emoji",
                   "--tower", TOWER_MODEL / "1")
        return pathlib.Path(done.stdout.split()[-1])

    def states(self):
        """{version: (state, message)} in the language service; numbers of llava.v1.ModelState."""
        status = self.service.GetModelStatus(self.service.new("GetModelStatusRequest", model={"name": "emoji"}))
        return {v.model.version: (v.state, v.message) for v in status.versions}

    def loading(self, version):
        """When it began and was over, by the monotonic clock."""
        when = {}
        for line in self.stack.llm.log_lines():
            if line.get("msg") == "model version" and line["version"] == str(version):
                when[line["to"]] = monotonic(datetime.datetime.fromisoformat(line["ts"]).timestamp())
        return when["loading"], when["ready"]

    def wait_for(self, what, goal):
        until(goal, lambda: f"{what}: {self.states()}\n{self.stack.llm.text()[-3000:]}", seconds=240)

    def take_over(self, first):
        """Publishes the next version under streams of this one. Its number, and whether an answer of the old one was under way when
        the first of the new one began."""
        # Answers of many lengths: when one stream begins its next one, others are far from the end of theirs.
        streamers = [Streamer(self, f"Tell me a story of {i} lions.", 400 + 350 * i) for i in range(STREAMS)]
        pulse = Pulse(self.chat)
        for thread in (*streamers, pulse):
            thread.start()
        self.wait_for("streams", lambda: all(s.turns or s.errors for s in streamers))
        folder = self.publish("emoji")
        second, published = int(folder.name), monotonic(folder.stat().st_ctime)  # when it was renamed to its number
        self.assertGreater(second, first)
        newest = lambda s: s.turns[-1][3] if s.turns else 0
        self.wait_for("take-over", lambda: all(newest(s) == second or s.errors for s in streamers))
        for thread in (*streamers, pulse):
            thread.end.set()
        for thread in (*streamers, pulse):
            thread.join()

        turns = sorted(turn for s in streamers for turn in s.turns)
        self.assertEqual([error for s in streamers for error in s.errors], [])
        for _, _, announced, version, reason in turns:
            # A turn that found its version gone before its first token was given to the next one.
            self.assertIn((announced, version), [(first, first), (second, second), (first, second)])
            self.assertEqual(reason, 2, "not to its length")
        for streamer in streamers:
            seen = [version for _, _, _, version, _ in streamer.turns]
            self.assertEqual(seen, sorted(seen), "back to the old version")
        switch = min(begin for begin, _, _, version, _ in turns if version == second)
        begin, end = self.loading(second)
        gap = max(min(to, end) - max(since, begin) for s in streamers for since, to in s.gaps)
        print(f"\nfirst turn by the new version {switch - published:.2f} s after its publication, {end - begin:.2f} s of loading, in which "
              f"the longest gap between pieces was {gap:.3f} s, the gateway's longest silence {pulse.longest_silence:.3f} s, {len(turns)} turns")
        self.assertLess(gap - pulse.longest_silence, 0.75 * (end - begin), "a stream stood still while the version was loaded")
        return second, any(end > switch and version == first for _, end, _, version, _ in turns)

    def test_a_new_version_takes_over_under_running_streams(self):
        session = self.session()
        picture = [{"data": (ROOT / "deploy/scenes/lion.png").read_bytes()}]
        before = self.ask(session, "What is this?", picture)
        first = before.finished.model.version
        capacity = self.stack.llm.metrics()["llava_llm_kv_capacity_bytes"]
        encoded = self.stack.vision.metrics()["llava_vision_feature_cache_misses_total"]
        for _ in range(5):  # a pause of this process ends all answers at once
            second, side_by_side = self.take_over(first)
            if side_by_side:
                break
            first = second
        else:
            self.fail("never was an answer of the old version under way when the new one began")

        self.wait_for("freed", lambda: self.states().get(first, (6,))[0] == 6)
        self.wait_for("gone", lambda: not any("llava_llm_model_info" in name and f'version="{first}"' in name
                                              for name in self.stack.llm.metrics()))
        metrics = self.stack.llm.metrics()
        self.assertEqual(metrics["llava_llm_kv_capacity_bytes"], capacity, "its keys and values are still there")
        self.assertEqual(metrics['llava_llm_workers{state="ready"}'], 1)
        self.assertTrue(any("llava_llm_model_info" in name and f'version="{second}"' in name for name in metrics))
        # The session goes on with the new version, which reads the features that are there.
        after = self.ask(session, "What is this?")
        self.assertEqual(after.finished.model.version, second)
        self.assertIn("lion", after.text)
        self.assertEqual(self.stack.vision.metrics()["llava_vision_feature_cache_misses_total"], encoded)


if __name__ == "__main__":
    unittest.main(verbosity=2)
