"""Each check finds what was planted for it, and is silent about a tidy tree."""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

import code_format
import commands
import documented_flags
import documented_metrics
import exit_codes
import file_sizes
import layers
import openai_urls
import proto_wire
import run
import shell_syntax
import skipped_tests

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Planted(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.root = pathlib.Path(self.folder.name)

    def tearDown(self):
        self.folder.cleanup()

    def plant(self, name, text, mode=0o644):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
        return path

    def assert_found(self, check, *parts):
        found = check.problems(self.root)
        self.assertEqual(len(found), 1, found)
        for part in parts:
            self.assertIn(part, found[0])


class LayersTest(Planted):
    def include(self, file, *names):
        self.plant(file, "".join(f'#include "{name}"\n' for name in names))

    def test_allowed(self):
        self.include("model/nn/clip.cc", "model/nn/clip.h", "model/ops/ops.h", "ATen/core/Tensor.h")
        self.include("server/llm/engine.cc", "server/runtime/mutex.h", "model/llava/llava.h",
                     "llava/v1/llm.pb.h", "absl/status/status.h")
        self.include("server/gateway/images.cc", "model/image/header.h", "model/digest/sha256.h")
        self.include("client/chat/main.cc", "client/chat_client.h", "llava/v1/chat.pb.h")
        self.include("tests/model/x_test.cc", "server/llm/engine.h", "tests/model/fake.h")
        self.assertEqual(layers.problems(self.root), [])

    def test_upwards(self):
        for file, name in (
            ("model/ops/ops.cc", "model/nn/clip.h"),
            ("model/config/c.h", "model/text/tokenizer.h"),
            ("model/llava/llava.cc", "model/train/optimizer.h"),
            ("model/tools/a.cc", "model/train/optimizer.h"),
            ("server/runtime/a.cc", "model/digest/sha256.h"),
            ("server/runtime/a.cc", "llava/v1/chat.pb.h"),
            ("server/vision/a.cc", "server/llm/engine.h"),
            ("server/llm/a.cc", "model/train/optimizer.h"),
            ("server/gateway/a.cc", "model/image/decode.h"),
            ("server/gateway/a.cc", "model/llava/llava.h"),
            ("client/a.cc", "server/runtime/mutex.h"),
            ("client/a.cc", "tests/client/fake_gateway.h"),
            ("model/nn/a.cu", "deploy/x.h"),
        ):
            with self.subTest(file=file, name=name):
                self.include(file, name)
                self.assert_found(layers, file + ":1", name)
                (self.root / file).unlink()

    def test_foreign_libraries(self):
        for file, name in (
            ("model/nn/a.cc", "absl/status/status.h"),
            ("model/ops/a.cc", "torch/torch.h"),
            ("client/a.cc", "ATen/core/Tensor.h"),
            ("server/gateway/a.cc", "opencv2/imgproc.hpp"),
        ):
            with self.subTest(file=file, name=name):
                self.plant(file, f"#include <{name}>\n")
                self.assertTrue(any(name in f for f in layers.problems(self.root)))
                (self.root / file).unlink()

    def test_unknown_folder(self):
        self.include("model/magic/a.h")
        self.assert_found(layers, "model/magic/a.h", "not in the table")

    def test_relative_include(self):
        self.plant("client/b.h", "")
        self.include("client/a.cc", "b.h")
        self.assert_found(layers, "client/a.cc:1", "path from the root")


class OtherChecksTest(Planted):
    def test_file_sizes(self):
        self.plant("client/long.cc", "\n" * 501)
        self.plant("client/fits.cc", "\n" * 500)
        self.plant("tests/fixtures/data.py", "\n" * 9999)
        self.assert_found(file_sizes, "client/long.cc", "501")

    def test_code_format(self):
        shutil.copy(ROOT / ".clang-format", self.root)
        self.plant("client/good.cc", "int main() { return 0; }\n")
        self.assertEqual(code_format.problems(self.root), [])
        self.plant("client/bad.cc", "int  main( ){return 0;}\n")
        self.assert_found(code_format, "client/bad.cc")

    def test_shell_syntax(self):
        good = "#!/usr/bin/env bash\nset -euo pipefail\n"
        self.plant("deploy/good.sh", good, 0o755)
        self.plant(".ci/run", good, 0o755)
        self.assertEqual(shell_syntax.problems(self.root), [])
        for text, mode, part in (
            (good + "if true; then\n", 0o755, "syntax error"),
            (good, 0o644, "executable"),
            ("#!/bin/bash\necho\n", 0o755, "set -e"),
        ):
            with self.subTest(part=part):
                self.plant("deploy/bad.sh", text, mode)
                self.assert_found(shell_syntax, "deploy/bad.sh", part)


    def test_commands(self):
        program = '#!/usr/bin/env python3\nif __name__ == "__main__":\n    main()\n'
        self.plant("tests/bench/good.py", program, 0o755)
        self.plant("tests/bench/part.py", "def part(): pass\n")
        self.plant("tests/e2e/x_test.py", 'if __name__ == "__main__":\n    unittest.main()\n')
        self.plant("docs/deep/a.md", "`tests/bench/good.py --x`, tests/bench/part.py, `tests/e2e/x_test.py`, peers/tests/no.py\n")
        self.assertEqual(commands.problems(self.root), [])
        for name, text, mode, part in (
            ("tests/bench/bad.py", program, 0o644, "chmod"),
            ("tests/bench/bad.py", program.replace("#!", "#"), 0o755, "#!"),
            ("tests/bench/other.py", "", 0o644, "there is no tests/bench/bad.py"),
        ):
            with self.subTest(part=part):
                self.plant(name, text, mode)
                self.plant("tests/bench/README.md", "| `tests/bench/bad.py --y` |\n")
                self.assertTrue(any(part in f for f in commands.problems(self.root)), commands.problems(self.root))
                (self.root / name).unlink()

    def test_documented_flags(self):
        self.plant("server/llm/o.cc", 'settings.Add("queue", &q, "");\nsettings.AddChoice(\n    "kv-type", &t, "", {});\n'
                                      'context.AddMetadata("x-request-id", id);\n')
        self.plant("docs/engine.md", "| `--queue`, `--kv-type-of` |\n")
        self.assert_found(documented_flags, "server/llm/o.cc", "--kv-type")
        self.plant("README.md", "`--kv-type int8`\n")
        self.assertEqual(documented_flags.problems(self.root), [])

    def test_flags_that_deploy_sets(self):
        self.plant("server/runtime/o.cc", 'settings.Add("host", &h, "");\n')
        self.plant("server/llm/o.cc", 'settings.Add("kv-bytes", &k, "");\n')
        self.plant("README.md", "`--host`, `--kv-bytes`\n")
        self.plant("Dockerfile", "ENV LLAVA_GATEWAY_HOST=0.0.0.0\n")
        self.plant("deploy/a/llm.yaml", "{name: LLAVA_LLM_KV_BYTES}\n{name: LLAVA_LLM_CONFIG}  # not LLAVA_LLM_NAME\n")
        self.assertEqual(documented_flags.problems(self.root), [])
        self.plant("deploy/a/vision.yaml", "\n{name: LLAVA_VISION_KV_BYTES}\n")
        self.assert_found(documented_flags, "deploy/a/vision.yaml:2", "llava-vision", "LLAVA_VISION_KV_BYTES")

    def test_documented_metrics(self):
        self.plant("server/llm/m.cc", 'metrics.Counter("llava_llm_steps_total", "Steps", {{"kind", kind}});\n'
                                      'Gauge("llava_llm_kv_" + what);\n')
        self.plant("docs/metrics.md", "| `llava_llm_steps_total{kind}` | counter | Steps |\n| `llava_llm_kv_bytes` | gauge | x |\n")
        self.assertEqual(documented_metrics.problems(self.root), [])
        self.plant("server/llm/n.cc", '"llava_llm_steps"')
        self.assert_found(documented_metrics, "server/llm/n.cc", "llava_llm_steps")
        self.plant("server/llm/n.cc", "")
        self.plant("docs/metrics.md", "| `llava_llm_steps_total{kind,torch}` | counter | Steps |\n| `llava_llm_kv_bytes` | gauge | x |\n")
        self.assert_found(documented_metrics, "docs/metrics.md", "llava_llm_steps_total", "torch")
        self.plant("docs/metrics.md", "| `llava_llm_steps_total` | counter | Steps |\n| `llava_llm_kv_bytes` | gauge | x |\n"
                                      "| `llava_llm_gone` | gauge | x |\n")
        self.assert_found(documented_metrics, "docs/metrics.md", "llava_llm_gone")

    def test_exit_codes(self):
        self.plant("server/runtime/exit_code.h", "enum ExitCode { kExitUsage = 2, kExitPortInUse = 3 };\n")
        self.plant("deploy/README.md", "| 0 | fine |\n| 1 | a fault |\n| 2 | usage |\n")
        self.assert_found(exit_codes, "deploy/README.md", "3")

    def test_openai_urls(self):
        self.plant("server/gateway/o.h", "int http_port = 8000;\n")
        self.plant("server/gateway/m.cc", "options.port = 8001;\noptions.metrics_port = 8002;\n")
        self.plant("docs/a.md", "http://localhost:8000/v1 and the teacher's http://127.0.0.1:8700/v1\n")
        self.assertEqual(openai_urls.problems(self.root), [])
        self.plant("model/openai/flags.cc", '"as\nhttp://localhost:8002/v1"\n')
        self.assert_found(openai_urls, "model/openai/flags.cc:2", "8002", "8000")


class SetupPythonTest(Planted):
    """tests/support/setup_python.py"""

    def run_program(self, venv):
        text = f"import sys\nsys.path.insert(0, {str(ROOT / 'tests/support')!r})\nimport setup_python\n"
        program = self.plant("program.py", text + "setup_python.need('sys')\nsetup_python.need('a_module_of_nobody')\n")
        return subprocess.run([sys.executable, program, "--flag", "a b"], text=True, capture_output=True,
                              env={**os.environ, "LLAVA_VENV": str(venv)})

    def test_goes_on_by_the_python_of_setup(self):
        self.plant("venv/bin/python", "#!/bin/sh\necho \"$(basename $1)|$2|$3\"\n", 0o755)
        self.assertEqual(self.run_program(self.root / "venv").stdout, "program.py|--flag|a b\n")

    def test_says_what_to_do(self):
        same = pathlib.Path(sys.executable).absolute().parent.parent  # it lacks the module, too
        for venv in (self.root / "none", same):
            done = self.run_program(venv)
            self.assertEqual(done.returncode, 1, done.stdout)
            self.assertIn("no Python module a_module_of_nobody: run deploy/setup.sh\n", done.stderr)


class ProtoWireTest(Planted):
    def setUp(self):
        super().setUp()
        shutil.copytree(ROOT / "proto", self.root / "proto")
        self.types = self.root / "proto/llava/v1/types.proto"

    def replace(self, old, new):
        text = self.types.read_text(encoding="utf-8")
        self.assertIn(old, text)
        self.types.write_text(text.replace(old, new), encoding="utf-8")

    def test_what_was_published_is_fine(self):
        self.replace("uint64 version = 2;", "uint64 version = 2;  // a comment is not on the wire")
        self.assertEqual(proto_wire.problems(self.root), [])

    def test_new_field_wants_a_new_baseline(self):
        self.replace("uint64 version = 2;", "uint64 version = 2;\n  string note = 4000;")
        self.assert_found(proto_wire, "proto_baseline.binpb", "renew it")

    def test_changed_number_breaks(self):
        self.replace("uint64 version = 2;", "uint64 version = 4000;")
        self.assertTrue(any("breaking" in f for f in proto_wire.problems(self.root)))

    def test_removed_field_breaks(self):
        self.replace("uint64 version = 2;", "")
        self.assertTrue(any("breaking" in f for f in proto_wire.problems(self.root)))

    def test_untidy_name(self):
        self.replace("uint64 version = 2;", "uint64 version = 2;\n  string BadName = 4000;")
        self.assertTrue(any("lint" in f for f in proto_wire.problems(self.root)))


class RunTest(unittest.TestCase):
    def test_every_check_is_a_test(self):
        registered = (ROOT / "tests/checks/CMakeLists.txt").read_text(encoding="utf-8")
        names = registered.split("foreach(check ", 1)[1].split(")", 1)[0].split()
        self.assertEqual(sorted(names), run.checks())


class SkippedTestsTest(unittest.TestCase):
    JUNIT = """<testsuite>
    <testcase name="Ran" status="run"><system-out>fine</system-out></testcase>
    <testcase name="Lora" status="notrun"><skipped message="SKIP_REGULAR_EXPRESSION_MATCHED"/>
      <system-out>[ RUN ] Lora
/x/lora_test.cc:12: Skipped
LoRA comes with its own issue

[  SKIPPED ] Lora (0 ms)</system-out></testcase>
    <testcase name="Script" status="notrun"><skipped message="SKIP_RETURN_CODE=77"/>
      <system-out>SKIP: no GPU here</system-out></testcase>
    <testcase name="Python" status="notrun"><skipped message=""/>
      <system-out>test_x (t.T.test_x) ... skipped 'needs prometheus'</system-out></testcase>
    <testcase name="Mute" status="notrun"><skipped message=""/></testcase>
    </testsuite>"""

    def test_reasons(self):
        self.assertEqual(skipped_tests.skipped(self.JUNIT), [
            ("Lora", "LoRA comes with its own issue"),
            ("Script", "no GPU here"),
            ("Python", "needs prometheus"),
            ("Mute", "it gave no reason"),
        ])


if __name__ == "__main__":
    unittest.main()
