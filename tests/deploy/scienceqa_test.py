"""deploy/scienceqa.sh at its smallest: interrupted, gone on with, repeated.

Environment: see script_case.py."""

import json
import signal
import unittest

from script_case import PATIENCE, ScriptCase, hangs_at, programs_but


class ScienceqaTest(ScriptCase):
    SCRIPT = "scienceqa.sh"

    def test_goes_on_after_a_signal_and_reports(self):
        tiny = ["--train", "32", "--test", "6", "--stage1", "40", "--epochs", "1"]
        # It does not end by itself before the signal.
        first = self.start(*tiny, env=programs_but(self.temporary.name, **hangs_at("eval", "scienceqa run")))
        self.wait_until((self.out / "aligned/published.json").exists, first)
        first.send_signal(signal.SIGTERM)
        output = first.communicate(timeout=PATIENCE)
        self.assertEqual(first.returncode, 143, output)

        self.run_script(*tiny)
        results = {file.stem: json.loads(file.read_text()) for file in (self.out / "results").glob("*.json")}
        self.assertEqual(set(results), {f"QCM-{format}-{start}" for format in ("LEPA", "ALE")
                                        for start in ("aligned", "base")})
        for name, result in results.items():
            self.assertEqual(result["classes"]["AVG"]["count"], 6, name)
        report = (self.out / "report.md").read_text()
        for title in ("reasons first", "answer first", "reasons first, without stage 1"):
            self.assertIn(f"| **{title}** |", report)
        self.assertIn("LLaVA 13B (published)", report)
        self.assertIn("<svg", (self.out / "report.html").read_text())

        before = {file: file.stat().st_mtime_ns for file in self.out.glob("runs/**/*")}
        self.run_script(*tiny)
        self.assertEqual(before, {file: file.stat().st_mtime_ns for file in before}, "done again")
        _, errors = self.run_script(*tiny, "--seed", "2", code=2)
        self.assertIn("choose another --out", errors)

    def test_wrong_use(self):
        self.check_wrong_use((["--train", "0"], "--train"), (["--epochs"], "--epochs"), (["-x"], "-x"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
