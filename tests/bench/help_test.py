"""Every program that README.md here names says with --help what it measures, and measures nothing."""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("LLAVA_BIN_DIR", ROOT / "build/release/bin"))


def programs():
    """Of the first column of the table; names without a folder are those of the build."""
    text = (ROOT / "tests/bench/README.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`.*?) \| ", text, re.M)
    names = {name for cell in cells for name in re.findall(r"`([\w./-]+)", cell)}
    return sorted(name if name.startswith("tests/") else pathlib.Path(name).name for name in names)


class HelpTest(unittest.TestCase):
    def test_every_program(self):
        found = programs()
        self.assertGreater(len(found), 10)
        for name in found:
            with self.subTest(name):
                path = ROOT / name if "/" in name else BIN / name
                done = subprocess.run([path, "--help"], text=True, capture_output=True, cwd="/", timeout=120)
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertRegex(done.stdout.lower(), f"{path.name.lower()}|usage")
                self.assertGreater(done.stdout.count("\n"), 3)

    def test_programs_of_another_folder(self):
        """Of train_vs_transformers.py, too, which has an option for it."""
        with tempfile.TemporaryDirectory() as empty:
            done = subprocess.run([ROOT / "tests/bench/train_vs_transformers.py", "--python", sys.executable],
                                  env=os.environ | {"LLAVA_BIN_DIR": empty}, text=True, capture_output=True, timeout=120)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn(f"{empty}/llava-train is not there", done.stderr)


if __name__ == "__main__":
    unittest.main()
