"""deploy/monitoring as written: queries that hold for many processes, recorded rules that somebody reads, names of jobs."""

import json
import pathlib
import re
import unittest

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
MONITORING = ROOT / "deploy/monitoring"


class MonitoringTest(unittest.TestCase):
    def setUp(self):
        self.targets = [target for panel in json.loads((MONITORING / "dashboard.json").read_text())["panels"]
                        for target in panel.get("targets", [])]
        self.rules = [rule for group in yaml.safe_load((MONITORING / "rules.yml").read_text())["groups"]
                      for rule in group["rules"]]

    def test_panels_tell_processes_apart_or_add_them_up(self):
        for target in self.targets:
            query = target["expr"]
            if re.search(r"\bup\{|llava_(llm|vision|model)_", query) and target.get("format") != "table":
                with self.subTest(query):
                    self.assertTrue(re.match(r"(sum|histogram_quantile\([0-9.]+, sum)\b", query) or
                                    "{{instance}}" in target["legendFormat"])

    def test_recorded_rules_are_used(self):
        read = " ".join([target["expr"] for target in self.targets] + [rule["expr"] for rule in self.rules])
        for rule in self.rules:
            if "record" in rule:
                self.assertIn(rule["record"], read)

    def test_job_names(self):
        scraped = {job["job_name"] for job in yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]}
        (down,) = [rule["expr"] for rule in self.rules if rule.get("alert") == "LlavaServiceDown"]
        self.assertEqual(set(re.findall(r'job="([^"]+)"', down)), scraped)
        advice = (ROOT / "deploy/kubernetes/README.md").read_text(encoding="utf-8")
        (relabeling,) = yaml.safe_load(re.search(r"^relabel_configs:\n.*?(?=^```$)", advice, re.M | re.S)[0])["relabel_configs"]
        self.assertEqual((relabeling["source_labels"], relabeling["target_label"]),
                         (["__meta_kubernetes_pod_label_app_kubernetes_io_name"], "job"))
        for job in scraped:
            self.assertRegex(job, f"^(?:{relabeling['regex']})$")
            self.assertIn(f"{{app.kubernetes.io/name: {job}", (ROOT / "deploy/kubernetes/base" / f"{job.removeprefix('llava-')}.yaml").read_text())


if __name__ == "__main__":
    unittest.main(verbosity=2)
