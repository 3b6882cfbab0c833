"""Lists the tests that ctest skipped, with their reasons. Usage: skipped_tests.py JUNIT.xml"""

import re
import sys
import xml.etree.ElementTree

# How GoogleTest, unittest and plain scripts say why.
REASONS = (
    re.compile(r"^\S+:\d+: Skipped\n(.+)$", re.M),
    re.compile(r"\.\.\. skipped ['\"](.+)['\"]$", re.M),
    re.compile(r"^SKIP(?:PED)?: (.+)$", re.M),
)


def reason(output):
    for pattern in REASONS:
        if match := pattern.search(output):
            return match[1].strip()
    return "it gave no reason"


def skipped(junit_text):
    """(test, reason) of each test that did not run."""
    root = xml.etree.ElementTree.fromstring(junit_text)
    result = []
    for case in root.iter("testcase"):
        if case.get("status") == "disabled" or case.find("skipped") is not None:
            output = case.findtext("system-out") or ""
            result.append((case.get("name"), reason(output)))
    return result


def main(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        tests = skipped(file.read())
    print(f"{len(tests)} tests skipped" + (":" if tests else ""))
    for name, why in tests:
        print(f"  {name}: {why}")


if __name__ == "__main__":
    main(sys.argv[1])
