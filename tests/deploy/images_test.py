"""What Dockerfile and compose.yaml promise, read without building anything (deploy/container_check.sh builds)."""

import pathlib
import re
import unittest

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


if __name__ == "__main__":
    unittest.main()
