"""What checks that every flag of a service changes what it does. A flag without a check fails."""
import pathlib
import re
import ssl
import tempfile
import unittest
import urllib.error
import urllib.request

import grpc
from certificates import Certificates
from lifecycle_flags import LifecycleFlags
from stack import FREE_PORTS, SLOWDOWN, Client, Service, run, until

import ports  # a neighbour that service.py finds

def flags(program):
    """Flags in --help, the universal ones aside."""
    text = run(program, "--help").stdout
    return [flag for flag in re.findall(r"^ *(?:-h,)?--([a-z0-9-]+)", text, re.M) if flag not in ("help", "version")]


class FlagsCase(unittest.TestCase):
    """Checks are methods named check_<flag>; each starts what it needs."""
    program = None

    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory(prefix="llava-flags-")
        self.folder = pathlib.Path(self.temporary.name)
        self.addCleanup(self.temporary.cleanup)

    def base(self):
        """Arguments without which the service does not start."""
        return []

    def run_once(self, *arguments):
        """(exit code, output) of a service that ends by itself."""
        return Service(self.program, [*self.base(), "--metrics-port", "0", *arguments], self.folder).wait_end()

    def start(self, *arguments, ready=True, environment=None):
        service = Service(self.program, [*self.base(), *FREE_PORTS, *arguments], self.folder, environment)
        self.addCleanup(service.stop)
        service.wait_listening()
        return service.wait_ready() if ready else service

    def at_once(self, service, method, requests):
        """The status and the messages of calls that are made while the service stands still: it meets all at a time."""
        with service.standing_still():
            calls = [method(request, timeout=240 * SLOWDOWN) for request in requests]
        results = []
        for call in calls:
            try:
                results.append((grpc.StatusCode.OK, list(call)))
            except grpc.RpcError as error:
                results.append((error.code(), error.details()))
        return results

    def check_host(self):
        self.assertTrue(self.start("--host", "127.0.0.3", ready=False).grpc.startswith("127.0.0.3:"))

    def check_insecure(self):
        self.assertEqual(self.run_once("--host", "0.0.0.0")[0], 2)
        self.assertTrue(self.start("--host", "0.0.0.0", "--insecure", ready=False).grpc.startswith("0.0.0.0:"))

    def check_tls_cert(self):
        certificates = Certificates(self.folder)
        service = self.start(*certificates.listener("server"), ready=False)
        roots = ssl.create_default_context(cafile=certificates.pem("ca"))
        self.assertEqual(urllib.request.urlopen(f"https://{service.http}/livez", context=roots).status, 200)
        self.assertEqual(service.get("/livez")[0], 0, "an open connection gets nothing")
        channel = grpc.secure_channel(service.grpc, grpc.ssl_channel_credentials(certificates.pem("ca").read_bytes()))
        self.addCleanup(channel.close)
        grpc.channel_ready_future(channel).result(120 * SLOWDOWN)
        code, text = self.run_once("--tls-cert", certificates.pem("server"), "--tls-key", certificates.key("client"), "--port", "0")
        self.assertEqual((code, text.count("\n")), (2, 1), text)
        self.assertEqual(self.run_once("--tls-cert", certificates.pem("server"))[0], 2)

    check_tls_key = check_tls_cert

    def check_tls_client_ca(self):
        certificates = Certificates(self.folder)
        service = self.start(*certificates.listener("server", "ca"), ready=False)
        roots = ssl.create_default_context(cafile=certificates.pem("ca"))
        open_url = lambda path: urllib.request.urlopen(f"https://{service.http}{path}", context=roots).status
        self.assertEqual(open_url("/livez"), 200)
        with self.assertRaises(urllib.error.HTTPError):
            open_url("/metrics")
        roots.load_cert_chain(certificates.pem("client"), certificates.key("client"))
        self.assertEqual(open_url("/metrics"), 200)

    def check_port(self):
        port = ports.hold()
        self.assertEqual(self.start("--port", port, ready=False).grpc, f"127.0.0.1:{port}")

    def check_metrics_port(self):
        port = ports.hold()
        self.start("--metrics-port", port, ready=False)
        self.assertIn("llava_build_info", urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode())

    def check_log_level(self):
        port = ports.hold()
        service = Service(self.program, [*self.base(), "--port", "0", "--metrics-port", port, "--log-level", "error"], self.folder)
        self.addCleanup(service.stop)
        service.http = f"127.0.0.1:{port}"
        until(lambda: service.get("/livez")[0] == 200, service.text, process=service.process)
        self.assertNotIn("listening", service.text())

    def check_log_format(self):
        service = self.start(ready=False)
        self.assertEqual(service.log_lines()[0]["msg"], "listening")
        port = ports.hold()
        service.stop()
        plain = Service(self.program, [*self.base(), "--port", "0", "--metrics-port", port, "--log-format", "text"], self.folder)
        self.addCleanup(plain.stop)
        until(lambda: "listening" in plain.text(), plain.text, process=plain.process)
        self.assertRegex(plain.text(), r" info .*listening.* grpc=127\.0\.0\.1:\d+")

    def check_config(self):
        port = ports.hold()
        file = self.folder / "settings.yaml"
        file.write_text(f"port: {port}\nlog_format: json\n")
        service = Service(self.program, [*self.base(), "--metrics-port", "0", "--config", file], self.folder)
        self.addCleanup(service.stop)
        self.assertEqual(service.wait_listening().grpc, f"127.0.0.1:{port}")
        service.stop()
        file.write_text("prot: 1\n")
        code, text = self.run_once("--config", file)
        self.assertEqual((code, text.count("\n")), (2, 1), text)
        self.assertIn("prot", text)

    def check_print_config(self):
        code, text = self.run_once("--port", "7", "--print-config")
        self.assertEqual(code, 0)
        self.assertRegex(text, r"(?m)^port: 7 +# flag$")

    def check_check_config(self):
        self.assertEqual(self.run_once("--check-config"), (0, ""))
        self.assertEqual(self.run_once("--check-config", "--port", "x")[0], 2)

    def environment_twin(self):
        port = ports.hold()
        name = self.program.upper().replace("-", "_") + "_METRICS_PORT"
        service = Service(self.program, [*self.base(), "--port", "0", "--log-format", "json"], self.folder, {name: str(port)})
        self.addCleanup(service.stop)
        self.assertEqual(service.wait_listening().http, f"127.0.0.1:{port}")

    def run_all(self):
        names = flags(self.program)
        self.assertGreater(len(names), 12)
        checks = {name[6:].replace("_", "-") for name in dir(self) if name.startswith("check_")}
        self.assertEqual(sorted(set(names) - checks), [], "flags without a check")
        self.assertEqual(sorted(checks - set(names)), [], "checks without a flag")
        done = set()  # flags may share a check
        for name, check in [("environment twin", self.environment_twin)] + [
                (name, getattr(self, "check_" + name.replace("-", "_"))) for name in names]:
            if check.__func__ in done:
                continue
            done.add(check.__func__)
            with self.subTest(flag=name):
                try:
                    check()
                finally:
                    self.doCleanups()
                    self.setUp()


class ModelFlagsCase(LifecycleFlags, FlagsCase):
    """What the two services with a model share."""

    def check_device(self):
        self.assertEqual(self.run_once("--device", "cuda:0", "--port", "0")[0], 5)
        self.assertEqual(self.run_once("--device", "toaster", "--port", "0")[0], 2)

    def check_dtype(self):
        service = self.start("--dtype", "bfloat16")
        models = Client(service.grpc, "llava.v1.ModelService")
        self.assertRegex(models.ListModels(models.new("ListModelsRequest")).models[0].numerics, r"^cpu-bf16-\w+-\d+$")
        models.close()

    at_work = []  # arguments with which work lasts

    def begin_work(self, service):
        """Calls that are under way and last longer than the drain of check_drain_timeout; to be kept."""
        raise NotImplementedError

    def check_drain_timeout(self):
        service = self.start("--drain-timeout", "100ms", *self.at_work)
        calls = self.begin_work(service)
        self.assertEqual(service.stop(), 0)
        self.assertIn("drain timeout, cancelling", [line["msg"] for line in service.log_lines()])
        del calls  # read by nobody, but there

    def more_threads(self, flag, few, many):
        services = [self.start(flag, count) for count in (few, many)]
        # gRPC's own come and go.
        until(lambda: abs(services[1].threads() - services[0].threads() - (many - few)) <= 3)
