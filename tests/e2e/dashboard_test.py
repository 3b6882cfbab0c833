"""Every query of the dashboard and every rule finds data in a live Prometheus while people chat and
things go wrong."""

import json
import pathlib
import re
import signal
import subprocess
import tempfile
import time
import unittest
import urllib.error
import urllib.parse
import urllib.request

import grpc
import yaml

from stack import LLM_MODEL, ROOT, SCENES, SLOWDOWN, Answer, Stack, eventually
from versions import cut_short, publish_copy

import ports  # a neighbour that service.py finds

MONITORING = ROOT / "deploy/monitoring"
WINDOW = "30s"  # what Grafana would put for $__rate_interval
PATIENCE = 400


def dashboard_queries():
    """(panel, query) of every target."""
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    return [(panel["title"], target["expr"].replace("$__rate_interval", WINDOW))
            for panel in dashboard["panels"] for target in panel.get("targets", [])]


def rule_queries():
    """(rule, query); of an alert only what it watches, as a quiet alert has no data."""
    queries = []
    for group in yaml.safe_load((MONITORING / "rules.yml").read_text())["groups"]:
        for rule in group["rules"]:
            if "record" in rule:
                queries += [(rule["record"], rule["expr"]), (rule["record"], rule["record"])]
            else:
                expression = re.sub(r" offset \w+", "", rule["expr"])  # nothing here is that old
                for part in re.split(r" (?:and|or)(?: on \([a-z, ]+\))? ", expression):
                    if not part.startswith("absent(") and "llava_tls_" not in part:  # nothing is encrypted here
                        queries.append((rule["alert"], re.fullmatch(r"(.+?)(?: (?:[<>]|==) [0-9.]+)?", part)[1]))
    return queries


class Prometheus:
    """Debian's Prometheus with our settings, but these services and a scrape every second."""

    def __init__(self, folder, targets):
        settings = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
        settings["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        settings["rule_files"] = [str(MONITORING / "rules.yml")]
        for job in settings["scrape_configs"]:
            job["static_configs"] = [{"targets": [targets.pop(job["job_name"])]}]
        assert not targets, f"prometheus.yml has no job for {targets}"
        path = folder / "prometheus.yml"
        path.write_text(yaml.safe_dump(settings))
        self.address = f"127.0.0.1:{ports.hold()}"
        self.log = open(folder / "prometheus.log", "w")
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={path}", f"--storage.tsdb.path={folder / 'tsdb'}",
             f"--web.listen-address={self.address}"], stdout=self.log, stderr=subprocess.STDOUT)

    def query(self, expression):
        """Values found, NaN left out. Raises ValueError with Prometheus's own words."""
        url = f"http://{self.address}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                result = json.load(answer)
        except urllib.error.HTTPError as error:
            raise ValueError(error.read().decode()) from error
        except OSError:
            return []  # still starting
        samples = result["data"]["result"]
        return [s["value"][1] for s in samples if s["value"][1] != "NaN"]

    def stop(self):
        self.process.terminate()
        self.process.wait(120)
        self.log.close()


def language_models(folder):
    """A repository with two good versions of the language model and a broken one."""
    model = folder / "models/emoji"
    for version, damage in (1, None), (2, None), (3, cut_short):
        publish_copy(LLM_MODEL / "1", model, version, damage)
    return model


def roll_out(stack):
    """A canary, which the gateway rolls back: its self-test is not met to the bit."""
    models = stack.client("llm", "llava.v1.ModelService")
    for label, version in ("stable", 1), ("canary", 2):
        models.SetLabel(models.new("SetLabelRequest", name="emoji", label=label, version=version))


class Visitor:
    """People at the gateway: some chat, some get it wrong."""

    def __init__(self, stack):
        self.stack = stack
        self.chat = stack.chat()
        self.pictures = sorted(SCENES.glob("*.png"))

    def picture(self, mark):
        """A picture of its own for each mark, which stands behind the end of the file."""
        number = int(mark) if mark.isdigit() else 0
        return self.pictures[number % len(self.pictures)].read_bytes() + mark.encode()

    def upload(self, session, data):
        new = self.chat.new
        return self.chat.UploadImage(iter([
            new("UploadImageRequest", header={"session_id": session, "size_bytes": len(data)}),
            new("UploadImageRequest", chunk=data)]))

    def ask(self, session, text, image=None, **fields):
        request = self.chat.new("ChatRequest", session_id=session, text=text, **fields)
        if image:
            request.images.add(id=image)
        return self.chat.Chat(request, timeout=240 * SLOWDOWN)

    def session(self):
        return self.chat.CreateSession(self.chat.new("CreateSessionRequest")).session.id

    def talk(self, n):
        """Two good turns about picture `n`, which nobody has features of."""
        session = self.session()
        image = self.upload(session, self.picture(str(n))).image.id
        Answer(self.ask(session, "What is in the picture?", image))
        Answer(self.ask(session, "How many things are there?"))

    def stumble(self):
        """What callers do wrong, and a change of mind."""
        session = self.session()
        for wrong in (lambda: self.upload(session, b"this is no picture"),
                      lambda: list(self.ask("no-such-session", "Hello?")),
                      lambda: list(self.ask(session, ""))):
            try:
                wrong()
                raise AssertionError("this was to be refused")
            except grpc.RpcError as error:
                assert error.code() in (grpc.StatusCode.INVALID_ARGUMENT,
                                        grpc.StatusCode.NOT_FOUND), error
        stream = self.ask(session, "What is in the picture?",
                          sampling={"max_new_tokens": 200, "ignore_eos": True})
        for response in stream:
            if response.event.WhichOneof("event") == "turn_started":
                self.chat.CancelTurn(self.chat.new("CancelTurnRequest", session_id=session))

    def lose_vision(self):
        """The vision service is killed; a question about a new picture fails and names it."""
        stack = self.stack
        stack.vision.stop(signal.SIGKILL)
        session = self.session()
        image = self.upload(session, self.picture("unseen")).image.id
        try:
            Answer(self.ask(session, "What is in the picture?", image))
            raise AssertionError("nobody could have seen this picture")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNAVAILABLE, error
        stack.restart("vision")
        eventually(lambda: Answer(self.ask(session, "What is in the picture?", image)), PATIENCE)


class DashboardTest(unittest.TestCase):
    def test_files_are_valid(self):
        for command in (["check", "rules", MONITORING / "rules.yml"],
                        ["check", "config", MONITORING / "prometheus.yml"]):
            done = subprocess.run(["promtool", *map(str, command)], text=True, capture_output=True)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_every_query_finds_data(self):
        queries = dashboard_queries() + rule_queries()
        self.assertGreater(len(queries), 50)
        with tempfile.TemporaryDirectory(prefix="llava-dashboard-") as name, Stack(
                llm_model=language_models(pathlib.Path(name)), llm=["--version-policy", "1,2,3", "--dtype", "bfloat16"],
                vision=["--feature-cache-dir", pathlib.Path(name, "features")],
                gateway=["--rollout", "auto", "--rollout-max-drift", "0"]) as stack:
            targets = {f"llava-{which}": stack.services[which].http
                       for which in ("gateway", "vision", "llm")}
            prometheus = Prometheus(pathlib.Path(name), targets)
            try:
                roll_out(stack)
                visitor = Visitor(stack)
                visitor.talk(0)
                visitor.stumble()
                visitor.lose_vision()
                deadline = time.monotonic() + PATIENCE * SLOWDOWN
                turn = 0
                while queries and time.monotonic() < deadline:
                    turn += 1
                    visitor.talk(turn)
                    visitor.stumble()
                    queries = [(title, query) for title, query in queries
                               if not prometheus.query(query)]
                    time.sleep(0.5)
                self.assertEqual(queries, [], "these queries find no data")
                self.assertEqual(prometheus.query("llava_no_such_metric"), [])
                self.assertRaises(ValueError, prometheus.query, "sum(")
            finally:
                prometheus.stop()


if __name__ == "__main__":
    unittest.main()
