"""deploy/quickstart.sh as people run it: from a script, at a keyboard, interrupted, with a port taken.

Environment: LLAVA_BIN_DIR, the folder of the binaries (set by ctest)."""

import os
import pathlib
import pty
import re
import select
import signal
import socket
import subprocess
import tempfile
import time
import unittest

from script_case import ROOT, SLOWDOWN, programs_but, until

import ports  # a neighbour that script_case.py finds

OFFSETS = (0, 1, 2, 11, 12, 21, 22)
PATIENCE = 120 * SLOWDOWN


def is_taken(port):
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class QuickstartTest(unittest.TestCase):
    def setUp(self):
        self.base = ports.hold_base(OFFSETS)
        self.folder = tempfile.TemporaryDirectory(prefix="quickstart-test-")
        self.environment = {**os.environ, "TMPDIR": self.folder.name}

    def tearDown(self):
        self.folder.cleanup()

    def command(self, *options):
        return [str(ROOT / "deploy/quickstart.sh"), "--no-build", "--port-base", str(self.base),
                *options]

    def run_script(self, *options):
        return subprocess.run(self.command(*options), env=self.environment, text=True,
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE)

    def assert_all_stopped(self):
        self.assertEqual([p for p in OFFSETS if is_taken(self.base + p)], [])

    def test_script_prints_two_answers(self):
        done = self.run_script("--image", str(ROOT / "deploy/scenes/two_apples.png"))
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        answers = [line for line in done.stdout.splitlines() if "quickstart:" not in line]
        self.assertEqual(len(answers), 2, done.stdout)
        self.assertIn("apples", answers[0].lower())
        self.assertIn("two", answers[1].lower())
        self.assertEqual(len(re.findall(r"s to first token", done.stderr)), 2)
        self.assert_all_stopped()
        self.assertEqual(os.listdir(self.folder.name), [])

    def test_taken_port_is_named(self):
        with socket.socket() as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(("127.0.0.1", self.base + 11))
            taken.listen()
            done = self.run_script()
        self.assertEqual(done.returncode, 1)
        self.assertIn(f"port {self.base + 11} is taken", done.stderr)
        self.assert_all_stopped()

    def test_wrong_use(self):
        for options in (["--nonsense"], ["--port-base", "x"], ["--port-base", "1023"],
                        ["--image", "/no/such.png"]):
            done = self.run_script(*options)
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertEqual(done.stderr.count("\n"), 1, done.stderr)

    def test_a_missing_program_is_named_at_once(self):
        programs = [f"llava-{name}" for name in ("gateway", "vision", "llm", "chat", "probe", "train", "datagen", "model")]
        for missing in programs:
            tool = pathlib.Path(tempfile.mkdtemp(dir=self.folder.name))
            for name in set(programs) - {missing}:
                (tool / name).write_text("#!/bin/sh\n")
                (tool / name).chmod(0o755)
            done = subprocess.run(self.command("--train"), env={**self.environment, "LLAVA_BIN_DIR": str(tool)}, text=True,
                                  stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE)
            self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
            self.assertIn(f"{missing} is missing", done.stderr)
            self.assertNotIn("starting", done.stdout)

    def test_services_want_the_program_that_watches_them(self):
        done = subprocess.run(["bash", "-c", '. deploy/services.sh; services_start "$0" tower model "$0" 30000',
                               self.folder.name], cwd=ROOT, text=True, capture_output=True, timeout=PATIENCE)
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertIn("llava-probe is missing", done.stderr)

    def test_signal_stops_everything(self):
        # It does not end by itself before the signal.
        environment = {**programs_but(self.folder.name, chat="exec sleep 3600"), "TMPDIR": self.folder.name}
        with subprocess.Popen(self.command(), env=environment, text=True,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT) as process:
            for line in process.stdout:
                if "starting" in line:
                    break
            until(lambda: is_taken(self.base + 1), process=process)
            process.send_signal(signal.SIGTERM)
            rest = process.stdout.read()
            self.assertEqual(process.wait(PATIENCE), 143, rest)
        self.assertIn("stopping the services", rest)
        self.assert_all_stopped()

    def test_keep_leaves_the_services(self):
        done = self.run_script("--keep")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        kill = re.search(r"kill ([0-9 ]+)", done.stdout)
        try:
            self.assertEqual([p for p in OFFSETS if not is_taken(self.base + p)], [])
        finally:
            for pid in kill[1].split():
                os.kill(int(pid), signal.SIGTERM)
        until(lambda: not any(is_taken(self.base + p) for p in OFFSETS))

    def test_keyboard(self):
        pid, terminal = pty.fork()
        if pid == 0:
            os.execve(self.command()[0], self.command(), self.environment)
        screen = ""

        def wait_for(text):
            nonlocal screen
            deadline = time.monotonic() + PATIENCE
            while text not in screen:
                self.assertLess(time.monotonic(), deadline, screen)
                if select.select([terminal], [], [], 0.1)[0]:
                    screen += os.read(terminal, 4096).decode(errors="replace")
            screen = screen.split(text, 1)[1]

        wait_for("goes with the next question")
        wait_for("> ")
        os.write(terminal, b"What is in the picture?\n")
        wait_for("s to first token")
        wait_for("> ")
        os.write(terminal, b"\x03")
        wait_for("Ctrl-C again")
        os.write(terminal, b"How many things are there?\n")
        wait_for("s to first token")
        os.write(terminal, b"/quit\n")
        wait_for("stopping the services")
        while True:
            try:
                if not os.read(terminal, 4096):
                    break
            except OSError:
                break
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(terminal)
        self.assertEqual(status, 0)
        self.assert_all_stopped()


if __name__ == "__main__":
    unittest.main()
