"""Each exit code of a service has a row in the table of deploy/README.md."""

import re

DECLARED = re.compile(r"\bkExit\w+ = (\d+)")


def problems(root):
    codes = DECLARED.findall((root / "server/runtime/exit_code.h").read_text(encoding="utf-8"))
    rows = re.findall(r"^\| (\d+) \|", (root / "deploy/README.md").read_text(encoding="utf-8"), re.M)
    if not codes:
        return ["server/runtime/exit_code.h: declares no exit codes"]
    return [f"deploy/README.md: has no row for exit code {code}" for code in ["0", "1", *codes] if code not in rows]
