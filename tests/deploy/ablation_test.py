"""deploy/ablation.sh at its smallest: interrupted, gone on with, repeated, with other settings.

Environment: LLAVA_BIN_DIR, the folder of the binaries (set by ctest)."""

import fcntl
import os
import shutil
import signal
import unittest

from script_case import PATIENCE, ScriptCase, hangs_at, programs_but


class AblationTest(ScriptCase):
    SCRIPT = "ablation.sh"

    def is_free(self):
        """Whether no process of a script holds the folder."""
        with open(self.out / ".lock", "w", encoding="ascii") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                return False

    def interrupt(self, options, sent, code):
        """Begins or goes on, and sends a signal when there are new steps of stage 2. Whether it came before the last one."""
        folder = self.out / "seed-7/conversation"
        log, published = folder / "metrics.jsonl", folder / "published.json"
        count = lambda: log.read_text().count("\n") if log.exists() else 0
        before = count()
        # It does not end by itself before the signal.
        process = self.start(*options, env=programs_but(self.temporary.name, **hangs_at("eval", "chat-quality")))
        self.wait_until(lambda: published.exists() or count() > before, process)
        self.assertFalse(self.is_free())
        if sent == signal.SIGINT:  # as a terminal does it
            os.killpg(process.pid, sent)
        else:
            process.send_signal(sent)
        output = process.communicate(timeout=PATIENCE)
        self.assertEqual(process.returncode, code, output)
        self.assertTrue(self.is_free(), "something still runs")
        if published.exists():
            return False
        self.assertTrue((folder / f"state-{count():08}.safetensors").exists(), "what was trained is saved")
        return True

    def test_goes_on_after_a_signal_and_reports(self):
        tiny = ["--pictures", "400", "--questions", "3", "--seeds", "7",
                "--only", "stage1-only,conversation"]
        for _ in range(5):
            if self.interrupt(tiny, signal.SIGTERM, 143) and self.interrupt(tiny, signal.SIGINT, 130):
                break
            shutil.rmtree(self.out)
        else:
            self.fail("every training was over before the signal came")

        output, _ = self.run_script(*tiny)
        results = sorted(file.name for file in (self.out / "results").iterdir())
        self.assertEqual(results, ["conversation-7.json", "stage1-only-7.json"])
        table = (self.out / "ablation.md").read_text()
        self.assertTrue(table.startswith("| group | stage 1 only | conversation |\n"), table)
        self.assertIn("| seeds | 1 | 1 |\n", table)
        self.assertIn(table, output)
        self.assertEqual((self.out / "ablation.png").read_bytes()[:4], b"\x89PNG")
        self.assertIn('"kinds": [\n      "conversation"\n    ]',
                      (self.out / "seed-7/data/conversation/dataset.json").read_text())

        before = {file: file.stat().st_mtime_ns for file in self.out.glob("seed-7/**/*")}
        self.run_script(*tiny)
        self.assertEqual(before, {file: file.stat().st_mtime_ns for file in before}, "done again")

        _, errors = self.run_script(*tiny, "--questions", "4", code=2)
        self.assertIn("questions 3", errors)
        self.assertIn("choose another --out", errors)

    def test_a_failed_piece_is_named(self):
        _, errors = self.run_script("--seeds", "1", code=1,
                                    env=self.fake_programs("llava-datagen", "llava-train", "llava-eval"))
        self.assertIn("the disk is full", errors)
        self.assertRegex(errors, r"seed 1, \S+: exit status 1; its log is \S+\.log")

    def test_wrong_use(self):
        self.check_wrong_use(
            (["--nonsense"], "--nonsense"), (["--pictures", "9"], "400"), (["--seeds", "1,1"], "twice"),
            (["--seeds", "0"], '"0"'), (["--seeds", "1,x"], '"x"'), (["--questions", "0"], "--questions"),
            (["--jobs", "none"], "--jobs"), (["--only", "full,half"], '"half"'))


if __name__ == "__main__":
    unittest.main(verbosity=2)
