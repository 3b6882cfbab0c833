"""A script of deploy/ under test: in a process group of its own, all of which ends with the test.

Environment: LLAVA_BIN_DIR, the folder of the binaries; LLAVA_SLOWDOWN, of a sanitizer (both set by ctest)."""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/support"))
from waiting import SLOWDOWN, until  # noqa: E402 (a neighbour, not a package)

PATIENCE = 900 * SLOWDOWN
BIN = pathlib.Path(os.environ.get("LLAVA_BIN_DIR", ROOT / "build/release/bin")).resolve()


def programs_but(parent, **scripts):
    """An environment with all programs, in which llava-NAME is this shell script instead."""
    folder = pathlib.Path(tempfile.mkdtemp(dir=parent))
    for program in BIN.glob("llava-*"):
        (folder / program.name).symlink_to(program)
    for name, script in scripts.items():
        program = folder / f"llava-{name}"
        program.unlink()
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    return {**os.environ, "LLAVA_BIN_DIR": str(folder)}


def hangs_at(name, command):
    """For programs_but: a program that never ends when it is called with these words."""
    return {name: f'case "$*" in *"{command}"*) exec sleep 3600 ;; esac\nexec "{BIN}/llava-{name}" "$@"'}


class ScriptCase(unittest.TestCase):
    SCRIPT = None  # its name in deploy/

    @classmethod
    def setUpClass(cls):
        # Where the tests run in the background, Ctrl-C is ignored, and so it would be by the script.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory(prefix="deploy-test-")
        self.addCleanup(self.temporary.cleanup)
        self.out = pathlib.Path(self.temporary.name) / "out"

    def start(self, *options, **more):
        process = subprocess.Popen(
            [str(ROOT / "deploy" / self.SCRIPT), "--no-build", "--out", str(self.out), *options],
            text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True, **more)

        def end():
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # as it should be
            process.communicate()

        self.addCleanup(end)
        return process

    def run_script(self, *options, code=0, **more):
        process = self.start(*options, **more)
        output, errors = process.communicate(timeout=PATIENCE)
        self.assertEqual(process.returncode, code, output + errors)
        return output, errors

    def fake_programs(self, *names):
        """An environment in which there are these programs alone, each of which fails at once."""
        tool = pathlib.Path(tempfile.mkdtemp(dir=self.temporary.name))
        for name in names:
            (tool / name).write_text("#!/bin/sh\necho the disk is full >&2\nexit 1\n")
            (tool / name).chmod(0o755)
        return {**os.environ, "LLAVA_BIN_DIR": str(tool)}

    def wait_until(self, condition, process):
        until(condition, lambda: f"the script ended early, with {process.poll()}, or takes too long", 900, process)

    def check_wrong_use(self, *cases):
        """Of (options, part of the one line that tells what is wrong)."""
        for options, part in cases:
            _, errors = self.run_script(*options, code=2)
            self.assertEqual(errors.count("\n"), 1, errors)
            self.assertIn(part, errors)
            self.assertFalse(self.out.exists())
