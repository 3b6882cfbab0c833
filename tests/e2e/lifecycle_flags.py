"""Checks of the flags with which both model services are told which versions they serve."""
import pathlib
import shutil
import time

import grpc
from stack import FREE_PORTS, Client, Service, until
from versions import cut_short, publish_copy


class LifecycleFlags:
    """Mixed into a FlagsCase whose base() is ["--model", <root>/<name>]; that has a version 1."""

    def source(self):
        return pathlib.Path(self.base()[1]) / "1"

    def publish(self, name, version, damage=None):
        """A copy of the model as a version of a repository; returns its root."""
        root = self.folder / "models"
        publish_copy(self.source(), root / name, version, damage)
        return root

    def serve(self, root, *arguments, ready=True):
        """Starts the service on a repository instead of --model."""
        service = Service(self.program, ["--repository", root, *FREE_PORTS, *arguments], self.folder)
        self.addCleanup(service.stop)
        service.wait_listening()
        service.models = Client(service.grpc, "llava.v1.ModelService")
        self.addCleanup(service.models.close)
        return service.wait_ready() if ready else service

    def served(self, service):
        """{(name, version)} that take requests."""
        listed = service.models.ListModels(service.models.new("ListModelsRequest")).models
        return {(entry.model.name, entry.model.version) for entry in listed}

    def statuses(self, service):
        answer = service.models.GetModelStatus(service.models.new("GetModelStatusRequest"))
        return {status.model.version: status for status in answer.versions}

    def check_repository(self):
        service = self.serve(self.publish("one", 1))
        self.assertEqual(self.served(service), {("one", 1)})
        self.publish("two", 1)
        until(lambda: self.served(service) == {("one", 1), ("two", 1)})
        self.assertEqual(self.run_once("--repository", self.folder)[0], 2, "beside --model")

    def check_models(self):
        self.publish("one", 1), self.publish("two", 1)
        service = self.serve(self.publish("three", 1), "--models", "one,three")
        until(lambda: self.served(service) == {("one", 1), ("three", 1)})
        self.assertEqual(self.run_once("--models", "one")[0], 2, "without --repository")

    def check_version_policy(self):
        for version in (1, 2, 3):
            root = self.publish("one", version)
        for policy, versions in (("latest", {3}), ("latest:2", {2, 3}), ("1,3", {1, 3})):
            service = self.serve(root, "--version-policy", policy)
            until(lambda: self.served(service) == {("one", version) for version in versions})
            service.stop()
        self.assertEqual(self.run_once("--version-policy", "some")[0], 2)

    def check_poll_interval(self):
        service = self.serve(self.publish("one", 1), "--poll-interval", "50ms")
        looks = lambda: sum(value for name, value in service.metrics().items()
                            if name.startswith("llava_model_repository_looks_total") and "poll" in name)
        first = looks()
        until(lambda: looks() > first + 3)
        service = self.serve(self.folder / "models", "--poll-interval", "0s")
        first = looks()
        time.sleep(0.5)
        self.assertLessEqual(looks(), first + 1)

    def check_memory_budget(self):
        code, text = self.run_once("--memory-budget", "1K", "--port", "0")
        self.assertEqual(code, 6, text)

    def check_swap_mode(self):
        for mode, first in (("side_by_side", (2, "ready")), ("in_place", (1, "draining"))):
            root = self.publish("one", 1)
            service = self.serve(root, "--swap-mode", mode)
            self.publish("one", 2)
            until(lambda: self.served(service) == {("one", 2)})
            moves = lambda: [(int(line["version"]), line["to"]) for line in service.log_lines() if line.get("msg") == "model version"]
            other = (1, "draining") if mode == "side_by_side" else (2, "ready")
            until(lambda: other in moves())
            self.assertLess(moves().index(first), moves().index(other), moves())
            service.stop()
            shutil.rmtree(root)

    def check_load_threads(self):
        root = self.publish("one", 1)
        few, many = (self.serve(root, "--load-threads", count) for count in (1, 9))
        # gRPC's own come and go.
        until(lambda: abs(many.threads() - few.threads() - 8) <= 3)

    def check_load_rate(self):
        size = sum(file.stat().st_size for file in self.source().iterdir())
        start = time.monotonic()
        self.start("--load-rate", str(size // 3))
        self.assertGreater(time.monotonic() - start, 2)

    def failures(self, *arguments, count=1):
        """The seconds until a broken version was tried so often, and how often it was tried half a second later."""
        begin = time.monotonic()
        self.publish("one", 1)
        service = self.serve(self.publish("one", 2, cut_short), *arguments)
        until(lambda: self.statuses(service)[2].failed_loads >= count)
        seconds = time.monotonic() - begin
        self.assertEqual(self.served(service), {("one", 1)}, "stands in")
        time.sleep(0.5)
        failed = self.statuses(service)[2].failed_loads
        service.stop()
        shutil.rmtree(self.folder / "models")
        return seconds, failed

    def check_retry_delay(self):
        self.assertEqual(self.failures("--retry-delay", "60s")[1], 1)
        self.failures("--retry-delay", "10ms", count=3)

    def check_retry_max_delay(self):
        seconds, _ = self.failures("--retry-delay", "20ms", "--retry-max-delay", "20ms", count=16)
        self.assertLess(seconds, 0.02 * 2 ** 15, "what delays that grow would take")
        self.assertEqual(self.run_once("--retry-delay", "2s", "--retry-max-delay", "1s")[0], 2)

    def check_admin_calls(self):
        root = self.publish("one", 1)
        for word, code in (("refuse", grpc.StatusCode.PERMISSION_DENIED), ("allow", None)):
            service = self.serve(root, "--admin-calls", word)
            try:
                service.models.UnloadModel(service.models.new("UnloadModelRequest", model={"name": "one", "version": 1}))
                self.assertIsNone(code)
            except grpc.RpcError as error:
                self.assertEqual(error.code(), code, error.details())
