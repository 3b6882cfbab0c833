"""What Dockerfile and compose.yaml promise, read without building anything (deploy/container_check.sh builds)."""

import pathlib
import re
import unittest

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]


def stage(name):
    """The lines of a stage of the Dockerfile."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
    return re.search(rf"^FROM \S+ AS {name}\n(.*?)(?=^FROM |\Z)", text, re.M | re.S)[1].splitlines()


def copied(name):
    """Sources of the stage's COPY lines, without those of other stages, each with its target."""
    lines = [line.split()[1:] for line in stage(name) if line.startswith("COPY ") and "--from" not in line]
    return {source: words[-1].rstrip("/") for words in lines for source in words[:-1]}


class ImagesTest(unittest.TestCase):
    def test_notices_go_with_the_pictures(self):
        files = copied("demo")
        notices = list((ROOT / "deploy/scenes-data").glob("LICENSE.*"))
        self.assertEqual(len(notices), 2)
        for notice in notices:
            self.assertEqual(files.get(str(notice.relative_to(ROOT))), files["deploy/scenes"])

    def test_the_demo_exposes_nothing_that_cannot_be_reached(self):
        self.assertNotIn("--host", (ROOT / "deploy/services.sh").read_text(encoding="utf-8"), "they listen on loopback")
        self.assertEqual([line for line in stage("demo") if line.startswith(("EXPOSE", "ENV"))], [])
        for name in ("gateway", "vision", "llm"):
            self.assertTrue(any(line.startswith("EXPOSE") for line in stage(name)), name)


class ComposeTest(unittest.TestCase):
    def setUp(self):
        self.services = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text(encoding="utf-8"))["services"]

    def test_the_default_model_answers_as_after_quickstart(self):
        self.assertIn("--default-temperature 0", (ROOT / "deploy/services.sh").read_text(encoding="utf-8"))
        command = self.services["llm"]["command"]
        self.assertEqual(command[command.index("--default-temperature") + 1], "${LLAVA_TEMPERATURE:-0}")

    def test_gpus_change_the_model_services_alone(self):
        text = (ROOT / "deploy/compose.cuda.yaml").read_text(encoding="utf-8")
        services = yaml.safe_load(text)["services"]
        self.assertEqual(set(services), {"vision", "llm"})
        for name, service in services.items():
            self.assertNotEqual(service["image"], self.services[name]["image"])
            self.assertEqual(service["build"], {"args": {"PRESET": "cuda"}})
            self.assertEqual(service["environment"][f"LLAVA_{name.upper()}_DEVICE"], "${LLAVA_DEVICE:-cuda:0}")
            self.assertEqual(service["deploy"]["resources"]["reservations"]["devices"][0]["driver"], "nvidia")
        self.assertTrue(any(line == "ARG PRESET=release" for line in stage("build")))

    def test_models_can_be_made_writable(self):
        for name in ("vision", "llm"):
            self.assertEqual(self.services[name]["volumes"],
                             ["${LLAVA_MODELS:-./models}:/models:${LLAVA_MODELS_ACCESS:-ro}"])


if __name__ == "__main__":
    unittest.main()
