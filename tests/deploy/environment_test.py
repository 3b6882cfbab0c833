"""Which paths CMake takes from env.sh, configuration after configuration; and how the compiler launcher calls ccache."""

import os
import pathlib
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROJECT = f"""cmake_minimum_required(VERSION 3.25)
project(paths LANGUAGES NONE)
include({ROOT}/deploy/environment.cmake)
llava_environment_path(LLAVA_TORCH_DIR "x")
message(STATUS "found=${{LLAVA_TORCH_DIR}}")
"""


class EnvironmentTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="environment-test-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(("LLAVA_", "CCACHE_"))}

    def configure(self, variable=None, *options):
        """What LLAVA_TORCH_DIR is, with this value in the environment."""
        (self.folder / "CMakeLists.txt").write_text(PROJECT)
        environment = {**self.environment, **({"LLAVA_TORCH_DIR": variable} if variable else {})}
        done = subprocess.run(["cmake", "-S", self.folder, "-B", self.folder / "build", *options], env=environment, text=True,
                              capture_output=True, check=True)
        (found,) = [line for line in done.stdout.splitlines() if "found=" in line]
        return found.split("found=")[1]

    def test_the_environment_counts_whenever_it_changes(self):
        self.assertEqual(self.configure(), "")
        self.assertEqual(self.configure("/old"), "/old")
        self.assertEqual(self.configure(), "/old")
        self.assertEqual(self.configure("/new"), "/new")

    def test_an_option_stays(self):
        self.assertEqual(self.configure(None, "-DLLAVA_TORCH_DIR=/mine"), "/mine")
        self.assertEqual(self.configure(), "/mine")
        self.assertEqual(self.configure("/old"), "/mine")
        self.assertEqual(self.configure("/new"), "/mine")
        self.assertEqual(self.configure("/new", "-DLLAVA_TORCH_DIR=/other"), "/other")

    def test_ccache_finds_what_another_clone_left(self):
        (self.folder / "ccache").write_text('#!/bin/sh\necho "$CCACHE_BASEDIR" "$CCACHE_NOHASHDIR" "$CCACHE_SLOPPINESS" "$@"\n')
        (self.folder / "ccache").chmod(0o755)
        path = {"PATH": f"{self.folder}:{os.environ['PATH']}"}
        for given, base in (({}, str(ROOT)), ({"CCACHE_BASEDIR": "/mine"}, "/mine")):
            done = subprocess.run([ROOT / "deploy/ccache.sh", "c++", "-c", "a.cc"], env={**self.environment, **given, **path},
                                  text=True, capture_output=True, check=True)
            self.assertEqual(done.stdout, f"{base} 1 pch_defines,time_macros c++ -c a.cc\n")


if __name__ == "__main__":
    unittest.main(verbosity=2)
