"""deploy/setup.sh where all packages are there: what it writes for others, and an environment of Python that an interrupted
run left. Nothing is fetched."""

import fcntl
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "deploy/setup.sh"


class SetupTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="setup-test-")
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        self.cache = self.root / "it's a cache"
        tools = self.root / "tools"
        tools.mkdir()
        (tools / "dpkg-query").write_text("#!/bin/sh\necho ii\n")
        (tools / "dpkg-query").chmod(0o755)
        self.environment = {**os.environ, "LLAVA_CACHE": str(self.cache), "PIP_NO_INDEX": "1",
                            "PATH": f"{tools}:{os.environ['PATH']}"}
        version = re.search(r"^TORCH_VERSION=(.+)$", SCRIPT.read_text(), re.M)[1]
        self.torch = self.cache / f"libtorch-{version}"
        self.torch.mkdir(parents=True)
        (self.torch / ".ok").touch()
        self.venv = self.cache / "venv"

    def run_script(self, *options, script=SCRIPT):
        return subprocess.run([str(script), *options], env=self.environment, text=True, stdin=subprocess.DEVNULL,
                              capture_output=True, timeout=600)

    def test_any_path_can_be_sourced(self):
        self.venv.mkdir()
        others = re.search(r"^without_needs=\((.+)\)$", SCRIPT.read_text(), re.M)[1].split()
        wanted = (ROOT / "deploy/requirements.txt").read_text() + "\n".join(others)
        (self.venv / ".ok").write_text(wanted + "\n")
        done = self.run_script()
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        show = '. "$0/env.sh"; printf "%s\\n" "$LLAVA_TORCH_DIR" "$LLAVA_VENV" "$CCACHE_DIR"'
        plain = {name: value for name, value in self.environment.items() if not name.startswith(("LLAVA_", "CCACHE_"))}
        for shell in ("sh", "bash"):
            for ccache, environment in ((self.cache / "ccache", plain), ("/my ccache", {**plain, "CCACHE_DIR": "/my ccache"})):
                found = subprocess.run([shell, "-euc", show, self.cache], env=environment, text=True, capture_output=True,
                                       check=True)
                self.assertEqual(found.stdout.splitlines(), [f"{self.torch}/torch", str(self.venv), str(ccache)])

    def test_an_environment_without_pip_is_made_anew(self):
        (self.venv / "bin").mkdir(parents=True)
        (self.venv / "bin/python").symlink_to(shutil.which("python3", path="/usr/bin") or sys.executable)
        done = self.run_script()
        self.assertNotEqual(done.returncode, 0)  # nothing can be fetched
        self.assertIn("No matching distribution found", done.stderr, done.stdout)
        subprocess.run([self.venv / "bin/pip", "--version"], check=True, stdout=subprocess.DEVNULL)
        self.assertFalse((self.venv / ".ok").exists())

    def test_packages_as_an_ordinary_user(self):
        """apt-get asks nothing and waits for its lock; its daemons may start again before anything else is fetched."""
        log = self.root / "log"
        policy = self.root / "policy-rc.d"
        script = self.root / "deploy/setup.sh"
        script.parent.mkdir()
        script.write_text(SCRIPT.read_text().replace("/usr/sbin/policy-rc.d", str(policy)))
        script.chmod(0o755)
        shutil.copy(ROOT / "deploy/requirements.txt", script.parent)
        (self.venv / "bin").mkdir(parents=True)
        for path, text in (
                (self.root / "tools/dpkg-query", "exit 1"),
                (self.root / "tools/id", "echo 1000"),
                (self.root / "tools/sudo", f'exec env -i PATH="$PATH" "$@"'),
                (self.root / "tools/apt-get", f'echo "apt-get $DEBIAN_FRONTEND $(ls "{policy}") $*" >>"{log}"'),
                (self.venv / "bin/pip", f'[ "$1" = --version ] || {{ echo "pip $(ls "{policy}" 2>&1)" >>"{log}"; exit 1; }}')):
            path.write_text(f"#!/bin/sh\n{text}\n")
            path.chmod(0o755)
        done = self.run_script(script=script)
        self.assertNotEqual(done.returncode, 0)
        calls = log.read_text().splitlines()
        self.assertEqual(len(calls), 3, done.stdout + done.stderr)
        for call in calls[:2]:
            self.assertTrue(call.startswith(f"apt-get noninteractive {policy} -q -o DPkg::Lock::Timeout=300 "), call)
        self.assertRegex(calls[2], "^pip .*No such file")

    def test_two_first_runs_at_once(self):
        """The second waits for the first."""
        with open(self.cache / ".lock", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            second = subprocess.Popen([str(SCRIPT)], env=self.environment, text=True, stdin=subprocess.DEVNULL,
                                      stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            self.addCleanup(second.communicate)
            self.addCleanup(second.kill)
            self.assertIn("waiting for another setup.sh", second.stdout.readline())
            self.assertIsNone(second.poll())
        self.assertNotIn("waiting", second.communicate(timeout=600)[0])

    def test_wrong_use(self):
        for script, options, part in (
                (SCRIPT, ["--with-everything"], "--with-everything"),
                (ROOT / "tests/run.sh", ["--label", "gpu"], "tests/gpu/run.sh"),
                (ROOT / "tests/run.sh", ["--label", "units"], "unit or e2e"),
                (ROOT / "tests/run.sh", ["--label"], "unit or e2e")):
            done = self.run_script(*options, script=script)
            self.assertEqual((done.returncode, done.stderr.count("\n")), (2, 1), done.stderr)
            self.assertIn(part, done.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
