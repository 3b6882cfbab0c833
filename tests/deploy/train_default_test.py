"""deploy/train_default.sh in a folder that was begun with other settings. The training itself is a run of the programs
that it calls.

Environment: see script_case.py."""

import unittest

from script_case import ScriptCase


class TrainDefaultTest(ScriptCase):
    SCRIPT = "train_default.sh"

    def begin(self, *options, code=1):
        """What is told by a run that fails at its first piece of work, if it gets there."""
        _, errors = self.run_script("--no-evaluation", *options, code=code,
                                    env=self.fake_programs("llava-datagen", "llava-train"))
        self.assertEqual("the disk is full" in errors, code == 1, errors)
        return errors

    def test_other_settings_are_refused(self):
        self.begin("--pictures", "400")
        for other in ([], ["--pictures", "500"], ["--pictures", "400", "--bases"]):
            errors = self.begin(*other, code=2)
            self.assertIn("400 pictures", errors)
            self.assertIn("choose another --out", errors)
        self.begin("--pictures", "400")

    def test_the_evaluation_alone_needs_its_program(self):
        _, errors = self.run_script(code=1, env=self.fake_programs("llava-datagen", "llava-train"))
        self.assertIn("llava-eval is missing", errors)

    def test_wrong_use(self):
        self.check_wrong_use((["--pictures", "9"], "400"), (["-x"], "-x"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
