"""deploy/datagen.sh at its smallest, with a scripted teacher: killed while the teacher is asked, gone on
with, served, repeated.

Environment: LLAVA_BIN_DIR, the folder of the binaries (set by ctest)."""

import collections
import json
import os
import signal
import sys
import threading
import unittest

from script_case import ROOT, ScriptCase

sys.path.insert(0, str(ROOT / "tests/support"))
import ports  # noqa: E402 (a neighbour, not a package)
import scripted_teacher  # noqa: E402

CONCURRENCY = 4
SERVICES = (0, 1, 2, 11, 12, 21, 22)  # their ports, from --port-base on


class DatagenTest(ScriptCase):
    SCRIPT = "datagen.sh"

    def teacher(self, **options):
        teacher = scripted_teacher.Teacher(**options)
        threading.Thread(target=teacher.serve_forever, daemon=True).start()
        self.addCleanup(teacher.server_close)
        self.addCleanup(teacher.shutdown)
        return teacher

    def test_killed_and_gone_on_with(self):
        teacher = self.teacher(delay=0.05, bad=0.2, faults=0.1, rest_after=15)
        options = ["--base-url", teacher.base_url, "--model", "scripted", "--pictures", "24",
                   "--concurrency", str(CONCURRENCY), "--steps", "3", "--questions", "2",
                   "--port-base", str(ports.hold_base(SERVICES))]
        first = self.start(*options)
        self.wait_until(lambda: len(teacher.answered) >= 15, first)
        os.killpg(first.pid, signal.SIGKILL)  # all of it, as a power loss would
        first.communicate()
        before = teacher.stats()
        self.assertLess(before["answered"], 48, "killed too late to tell anything")
        teacher.rested.set()

        output, errors = self.run_script(*options)
        after = teacher.stats()
        self.assertIn("it is served now", output, output + errors)
        self.assertLessEqual(after["answered_again"], CONCURRENCY, "paid twice")
        report = json.loads((self.out / "instruct/report.json").read_text())
        self.assertTrue(report["run"]["finished"], report["run"])
        self.assertGreaterEqual(report["run"]["answers_known"], before["answered"] - CONCURRENCY)
        records = json.loads((self.out / "instruct/instruct.json").read_text())
        kinds = collections.Counter(record["type"] for record in records)
        self.assertEqual(set(kinds), {"conversation", "detail", "complex"})
        rejected = (self.out / "instruct/rejected.jsonl").read_text().splitlines()
        self.assertEqual(len(records) + len(rejected), 48)
        for record in records:  # nothing of what the teacher spoiled
            for turn in record["conversations"]:
                self.assertNotRegex(turn["value"], r"captions|sorry|0\.125")
        self.assertEqual(len(json.loads((self.out / "expansion.json").read_text())), 24)
        self.assertIn("| **average** |", (self.out / "results.md").read_text())
        self.assertEqual((self.out / "answers.txt").read_text().count("\n"), 3)

        output, errors = self.run_script(*options)  # all is there
        self.assertIn("it is served now", output, output + errors)
        self.assertEqual(teacher.stats()["attempts"], after["attempts"])

        _, errors = self.run_script(*options, "--steps", "4", code=2)
        self.assertIn("choose another --out", errors)

    def test_a_missing_program_is_named_at_once(self):
        programs = ["llava-datagen", "llava-train", "llava-eval", "llava-vision", "llava-llm", "llava-gateway",
                    "llava-chat", "llava-probe"]  # by the last the services are seen ready, after hours
        for missing in programs:
            _, errors = self.run_script("--base-url", "http://localhost:1/v1", "--model", "scripted", code=1,
                                        env=self.fake_programs(*(set(programs) - {missing})))
            self.assertIn(f"{missing} is missing", errors)
            self.assertFalse(self.out.exists())

    def test_wrong_use(self):
        self.check_wrong_use(
            (["--port-base", "65501"], "--port-base"), (["--port-base", "1023"], "--port-base"),
            ([], "--base-url"), (["--base-url", "http://localhost:1/v1"], "--model"),
            (["--pictures", "3"], "at least 8"), (["--nonsense"], "--nonsense"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
