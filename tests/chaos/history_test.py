"""The checker finds what it is there for: each rule is broken once in a history that is right otherwise."""
import copy
import json
import pathlib
import tempfile
import unittest

import history


def good():
    """Two sessions; the second turn of one breaks and is resumed, with an overlap."""
    def event(kind, session="s", key="alice", **fields):
        return {"kind": kind, "session": session, "key": key, **fields}

    def stored(turn, number, text, answer, seed):
        return {"turn": turn, "number": number, "text": text, "answer": answer, "version": 1, "seed": seed,
                "ended": True, "reason": "ERROR" if turn == "t9" else "STOP"}

    return [
        event("asked", request="r1", text="one?"),
        event("started", stream=1, request="r1", turn="t1", number=1, version=1, seed=7),
        event("text", stream=1, turn="t1", offset=0, text="caf\u00e9"),
        event("asked", "z", "bob", request="r9", text="other?"),
        event("started", "z", "bob", stream=9, request="r9", turn="t9", number=1, version=1, seed=9),
        event("text", stream=1, turn="t1", offset=5, text=" yes"),
        event("finished", stream=1, turn="t1", version=1, text_bytes=9, reason="STOP"),
        event("asked", request="r2", text="two?"),
        event("started", stream=2, request="r2", turn="t2", number=2, version=1, seed=8),
        event("text", stream=2, turn="t2", offset=0, text="abc"),
        event("broken", stream=2),
        event("asked", request="r2", text="two?"),
        event("started", stream=3, request="r2", turn="t2", number=2, version=1, seed=8, restarts=1),
        event("text", stream=3, turn="t2", offset=1, text="bc"),
        event("text", stream=3, turn="t2", offset=3, text="de"),
        event("finished", stream=3, turn="t2", version=1, text_bytes=5),
        event("failed", "z", "bob", stream=9, turn="t9", code="INTERNAL"),
        event("stored", turns=[stored("t1", 1, "one?", "caf\u00e9 yes", 7), stored("t2", 2, "two?", "abcde", 8)]),
        event("stored", "z", "bob", turns=[stored("t9", 1, "other?", "", 9)]),
        event("probed", "z", method="GetSession", code="NOT_FOUND"),
        event("listed", "z", "bob"),
    ]


def shared():
    """Two clients of a key ask in one session; the first is told late."""
    def event(kind, client, **fields):
        return {"kind": kind, "session": "s", "key": "alice", "client": client, **fields}

    def turn(number, text, ended=True):
        return {"turn": f"t{number}", "number": number, "text": text, "answer": "yes" if ended else "", "version": 1,
                "seed": 7, "ended": ended, "reason": "STOP" if ended else "UNSPECIFIED"}

    def told(client, number):
        place = {"stream": number, "turn": f"t{number}"}
        return [event("started", client, request=f"r{number}", number=number, version=1, seed=7, **place),
                event("text", client, offset=0, text="yes", **place),
                event("finished", client, version=1, text_bytes=3, reason="STOP", **place)]

    return [
        event("asked", "one", request="r1", text="one?"),
        event("asked", "two", request="r2", text="two?"),
        event("broken", "two", stream=5),
        event("asked", "two", request="r2", text="two?"),
        event("stored", "two", turns=[turn(1, "one?", ended=False)]),
        *told("two", 2),
        *told("one", 1),
        event("stored", "one", turns=[turn(1, "one?"), turn(2, "two?")]),
    ]


def swapped():
    """Two sessions that ask alike, before and behind a swap; a version went away before a first text."""
    v1, v2 = ["emoji", 1, "aa"], ["emoji", 2, "bb"]

    def event(kind, session, **fields):
        return {"kind": kind, "session": session, "key": session, **fields}

    def turn(session, number, version, answer, first=None):
        name = f"{session}{number}"
        told = {"turn": name, "stream": name}
        start = {"request": f"r{name}", "number": number, "seed": 5}
        return [
            event("asked", session, request=f"r{name}", text=f"q{number}?", picture="lion.png" if number == 1 else None),
            *([event("started", session, version=first, **told, **start)] if first else []),
            event("started", session, version=version, **told, **start),
            event("text", session, offset=0, text=answer, **told),
            event("finished", session, version=version, text_bytes=len(answer), reason="STOP", **told),
        ], {"turn": name, "number": number, "text": f"q{number}?", "answer": answer, "version": version, "seed": 5,
            "ended": True}

    events = []
    for session in "ab":
        stored = []
        for each, kept in (turn(session, 1, v1, "a lion"), turn(session, 2, v2, "yellow", v1 if session == "b" else None)):
            events += each
            stored.append(kept)
        events.append(event("stored", session, turns=stored))
    return events


class HistoryTest(unittest.TestCase):
    def test_a_good_history(self):
        self.assertEqual(history.violations(good()), [])

    def test_files(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "history.jsonl"
            path.write_text("".join(json.dumps(event) + "\n" for event in good()), encoding="utf-8")
            self.assertEqual(history.read(path), good())

    def planted(self, words, change):
        """After `change` exactly that violation shows."""
        events = copy.deepcopy(good())
        change(events)
        found = history.violations(events)
        self.assertTrue(found, f"not noticed: {words}")
        self.assertIn(words, " | ".join(found))

    def test_a_good_history_of_swaps(self):
        self.assertEqual(history.violations(swapped()), [])
        self.assertEqual(history.swap_violations(swapped()), [])

    def test_planted_violations_of_swaps(self):
        find = self.find
        stored = lambda events: find(events, "stored", session="b")["turns"]

        def fail(events):
            end = find(events, "finished", turn="b2")
            end.update(kind="failed", code="UNAVAILABLE")

        def stale(events):
            find(events, "text", turn="b1").update(text="a tram")
            stored(events)[0].update(answer="a tram")

        def mixed(events):
            find(events, "text", turn="b2").update(text="yellos")
            stored(events)[1].update(answer="yellos")

        def other_digest(events):
            for event in (find(events, "started", turn="b1"), find(events, "finished", turn="b1"), stored(events)[0]):
                event["version"] = ["emoji", 1, "cc"]

        def late(events):  # the version changes behind the first text
            again = find(events, "started", turn="b2", version=["emoji", 2, "bb"])
            events.remove(again)
            events.insert(events.index(find(events, "text", turn="b2")) + 1, again)

        cases = {
            "turn b2 failed: UNAVAILABLE": (history.swap_violations, fail),
            "turn b2 began and never ended": (
                history.swap_violations, lambda e: e.remove(find(e, "finished", turn="b2"))),
            "was broken off: INTERRUPTED": (
                history.swap_violations, lambda e: find(e, "finished", turn="b2").update(reason="INTERRUPTED")),
            "turns a1 and b1 differ": (history.swap_violations, stale),
            "turns a2 and b2 differ": (history.swap_violations, mixed),
            "version 1 of emoji has the digests aa and cc": (history.swap_violations, other_digest),
            "stream b2 broke": (
                history.swap_violations, lambda e: find(e, "finished", turn="b2").update(kind="broken")),
            "was ('b', 2, ['emoji', 1, 'aa'], 5) and is": (history.violations, late),
            "ends with ['emoji', 1, 'aa']": (
                history.violations, lambda e: find(e, "finished", turn="b2").update(version=["emoji", 1, "aa"])),
            "is stored as another": (history.violations, lambda e: stored(e)[1].update(version=["emoji", 2, "cc"])),
            "ended as": (history.violations, lambda e: e.append(
                {**find(e, "finished", turn="b2"), "stream": "later", "reason": "LENGTH"})),
        }
        for words, (check, change) in cases.items():
            with self.subTest(words):
                events = swapped()
                change(events)
                self.assertIn(words, " | ".join(check(events)))

    def test_a_good_history_of_a_shared_session(self):
        self.assertEqual(history.violations(shared()), [])

    def test_planted_violations_of_a_shared_session(self):
        stored = lambda events: self.find(events, "stored", client="one")["turns"]

        def overlap(events):
            self.find(events, "stored", client="two")["turns"].append({**stored(events)[1], "answer": "", "ended": False})

        cases = {
            "turn t1 is running and has turn t2 behind it": overlap,
            "is stored as another": lambda e: self.find(e, "started", turn="t2").update(number=1),
            "turn t2 began and is still running": lambda e: stored(e)[1].update(ended=False),
        }
        for words, change in cases.items():
            with self.subTest(words):
                events = shared()
                change(events)
                self.assertIn(words, " | ".join(history.violations(events)))

    def find(self, events, kind, **fields):
        return next(e for e in events if e["kind"] == kind and all(e.get(k) == v for k, v in fields.items()))

    def test_planted_violations(self):
        find = self.find
        stored = lambda events: find(events, "stored", session="s")["turns"]

        def begin_early(events):
            later = find(events, "started", turn="t2")
            events.remove(later)
            events.insert(4, later)

        def lose(events):
            del stored(events)[1]

        def double(events):
            stored(events).append({**stored(events)[1], "turn": "t3", "number": 3})

        def change_after_end(events):
            events.insert(10, {**find(events, "stored", session="s"), "turns": [
                {**stored(events)[0], "answer": "caf\u00e9 no"}]})

        cases = {
            "begins while t1": begin_early,
            "has number 5": lambda e: find(e, "started", turn="t1").update(number=5),
            "was acknowledged and is lost": lose,
            "became 2 turns": double,
            "is not stored": lambda e: stored(e)[1].update(text="something else"),
            "bytes 9 to 11 of turn t1 are missing": lambda e: (
                e.insert(6, {**find(e, "text", offset=5), "offset": 11, "text": "x", "stream": 4})),
            "goes from byte 5 to 4": lambda e: find(e, "text", offset=5).update(offset=4),
            "tells other text from byte 1": lambda e: find(e, "text", offset=1).update(text="xc"),
            "told other text than is stored": lambda e: stored(e)[1].update(answer="abcxe"),
            "told 5 bytes, 6 are stored": lambda e: stored(e)[1].update(answer="abcdef"),
            "has 6 bytes, 5 were told": lambda e: find(e, "finished", turn="t2").update(text_bytes=6),
            "ends with 2": lambda e: find(e, "finished", turn="t2").update(version=2),
            "and is ('s', 2, 2, 8)": lambda e: find(e, "started", stream=3).update(version=2),
            "is stored as another": lambda e: stored(e)[0].update(seed=1),
            "after its end": lambda e: e.insert(7, {**find(e, "text", offset=5), "offset": 9, "text": ""}),
            "changed after its end": change_after_end,
            "bob sees session s of alice": lambda e: find(e, "text", offset=5).update(key="bob"),
            "are numbered [1, 3]": lambda e: stored(e)[1].update(number=3),
            "tells of turns t1 and t9": lambda e: find(e, "text", offset=5).update(turn="t9", offset=0),
            "before it began": lambda e: e.remove(find(e, "started", turn="t1")),
            "taken up 2 times before, and now 1": lambda e: find(e, "started", stream=2).update(restarts=2),
            "t1 finished with STOP and is stored with LENGTH": lambda e: stored(e)[0].update(reason="LENGTH"),
            "t9 failed with INTERNAL and is stored with STOP": lambda e: (
                find(e, "stored", session="z")["turns"][0].update(reason="STOP")),
            "were never looked at": lambda e: e.remove(find(e, "stored", session="z")),
            "turn t2 began and is still running": lambda e: stored(e)[1].update(ended=False),
            "alice got OK from GetSession": lambda e: find(e, "probed").update(code="OK"),
            "alice sees session z of bob": lambda e: find(e, "listed").update(key="alice"),
        }
        for words, change in cases.items():
            with self.subTest(words):
                self.planted(words, change)


if __name__ == "__main__":
    unittest.main(verbosity=2)
