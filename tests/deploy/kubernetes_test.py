"""deploy/kubernetes: rendered, validated against Kubernetes' schemas, and started as far as settings go. No cluster."""

import importlib.util
import math
import re
import shutil
import subprocess
import tempfile
import unittest

import yaml
from kubernetes_case import (COMPONENTS, KUBERNETES, OVERLAYS, PROGRAMS, ROOT, Programs, composed, documents, example,
                             image, kustomize, of_kind, overlaid, workloads)

OLDEST = "1.27"  # as deploy/kubernetes/README.md says
HAVE_SCHEMAS = importlib.util.find_spec("kubernetes_validate") is not None
SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}


def size(text):
    """Bytes, as the settings (512M) or Kubernetes (2Gi) write them."""
    number, unit = re.fullmatch(r"(\d+)([KMGT]?)i?", str(text)).groups()
    return int(number) << 10 * " KMGT".index(unit or " ")


def cores(text):
    return int(text[:-1]) / 1000 if text.endswith("m") else float(text)


def seconds(text):
    unit = text.lstrip("0123456789.")
    return float(text.removesuffix(unit)) * SECONDS[unit]


class Manifests(unittest.TestCase):
    """What holds for a set of manifests, as they are written or rendered."""

    def check_schemas(self, manifests):
        if not HAVE_SCHEMAS:
            self.skipTest("kubernetes-validate is missing: run deploy/setup.sh")
        import kubernetes_validate
        for manifest in manifests:
            if manifest["kind"] == "ServiceMonitor":  # of the Prometheus operator, which brings its schema itself
                continue
            for version in (OLDEST, kubernetes_validate.latest_version()):
                kubernetes_validate.validate(manifest, version, strict=True)

    def check_pod(self, name, workload, pod):
        about = image(name)
        (container,) = pod["containers"]
        self.assertEqual(container["image"].split(":")[0].split("/")[-1].removesuffix("-cuda"), f"llava-{name}")
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        self.assertEqual(set(ports.values()), about["ports"])
        self.assertEqual(pod["enableServiceLinks"], False, "LLAVA_GATEWAY_PORT would be tcp://...")
        self.assertEqual(pod["automountServiceAccountToken"], False)
        metadata = workload["spec"]["template"]["metadata"]
        self.assertEqual(metadata["annotations"]["prometheus.io/port"], str(ports["metrics"]))
        self.assertEqual(workload["spec"]["selector"]["matchLabels"], {"app.kubernetes.io/name": f"llava-{name}"})
        self.assertEqual(metadata["labels"]["app.kubernetes.io/name"], f"llava-{name}")
        security = pod["securityContext"]
        self.assertEqual((str(security["runAsUser"]), str(security["runAsGroup"])), about["user"])
        self.assertTrue(security["runAsNonRoot"])
        self.assertEqual(security["seccompProfile"], {"type": "RuntimeDefault"})
        for each in [container, *pod.get("initContainers", [])]:
            self.assertEqual(each["securityContext"], {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                                                       "capabilities": {"drop": ["ALL"]}})
            self.assertIn("memory", each["resources"]["limits"])
            self.assertIn("cpu", each["resources"]["requests"])
        self.assertLessEqual({mount["name"] for mount in container["volumeMounts"]},
                             {volume["name"] for volume in pod["volumes"]} |
                             {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])})
        self.check_probes(container)

    def check_probes(self, container):
        pages = (ROOT / "server/runtime/service_process.cc").read_text(encoding="utf-8")
        for kind, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
            probe = container[kind]["httpGet"]
            self.assertEqual((probe["path"], probe["port"]), (path, "metrics"), kind)
            self.assertIn(f'{{"{path}",', pages)

    def check_services(self, manifests):
        pods = {f"llava-{name}": pod for name, _, pod in workloads(manifests)}
        for service in of_kind(manifests, "Service"):
            name = service["spec"]["selector"]["app.kubernetes.io/name"]
            ports = {port["name"]: port["containerPort"] for port in pods[name]["containers"][0]["ports"]}
            for port in service["spec"]["ports"]:
                self.assertEqual(port["port"], ports[port["targetPort"]])
            if name != "llava-gateway":
                self.assertEqual(service["spec"]["clusterIP"], "None", "the gateway must see every pod")

    def check(self, manifests):
        found = [name for name, _, _ in workloads(manifests)]
        self.assertEqual(sorted(found), sorted(PROGRAMS))
        for name, workload, pod in workloads(manifests):
            with self.subTest(name):
                self.check_pod(name, workload, pod)
                budgets = [each["metadata"]["name"] for each in of_kind(manifests, "PodDisruptionBudget")]
                self.assertEqual(f"llava-{name}" in budgets, name != "gateway")
        self.check_services(manifests)
        (gateway,) = of_kind(manifests, "StatefulSet")
        self.assertEqual(gateway["spec"]["replicas"], 1, "its store has one writer")
        self.assertEqual(gateway["spec"]["volumeClaimTemplates"][0]["spec"]["accessModes"], ["ReadWriteOnce"])


class WrittenTest(Manifests):
    """The files themselves: needs no kubectl."""

    def setUp(self):
        self.base = documents(KUBERNETES / "base/kustomization.yaml")[0]
        self.manifests = [each for name in self.base["resources"] for each in documents(KUBERNETES / "base" / name)]

    def test_base(self):
        self.check(self.manifests)
        self.assertEqual({each["name"] for each in self.base["images"]}, {f"llava-{name}" for name in PROGRAMS})

    def test_schemas(self):
        self.check_schemas(self.manifests)
        self.manifests[-1]["spec"]["podSelectors"] = {}
        with self.assertRaisesRegex(Exception, "podSelectors"):
            self.check_schemas(self.manifests)

    def test_every_file_is_used(self):
        for path in KUBERNETES.rglob("kustomization.yaml"):
            text = path.read_text(encoding="utf-8")
            for file in path.parent.rglob("*.yaml"):
                if file != path:
                    with self.subTest(file):
                        self.assertIn(str(file.relative_to(path.parent)), text)

    def test_settings_fit_the_names_of_services(self):
        services = {each["metadata"]["name"]: {port["name"]: port["port"] for port in each["spec"]["ports"]}
                    for name in ("vision", "llm") for each in documents(KUBERNETES / f"base/{name}.yaml")
                    if each["kind"] == "Service"}
        for path in KUBERNETES.rglob("settings/gateway.yaml"):
            settings = documents(path)[0]
            for name in ("vision", "llm"):
                self.assertEqual(settings[name], f"dns:///llava-{name}:{services[f'llava-{name}']['grpc']}")

    def test_metric_of_the_autoscaler_is_documented(self):
        (scaler,) = documents(KUBERNETES / "components/autoscale/autoscaler.yaml")
        metric = scaler["spec"]["metrics"][0]["pods"]["metric"]["name"]
        self.assertIn(f"| `{metric}` | gauge |", (ROOT / "docs/metrics.md").read_text(encoding="utf-8"))


def no_kubectl():
    """Why nothing can be rendered, or None."""
    if shutil.which("kubectl") is None:
        return "kubectl is missing: nothing is rendered"
    done = subprocess.run(["kubectl", "version", "--client", "-o", "json"], capture_output=True, text=True, check=False)
    found = re.search(r'"gitVersion": *"v(\d+)\.(\d+)', done.stdout)
    if found is None or tuple(map(int, found.groups())) < tuple(map(int, OLDEST.split("."))):
        version = ".".join(found.groups()) if found else "of unknown version"
        return f"kubectl {version} is too old, {OLDEST} or later is wanted: nothing is rendered"
    return None


NO_KUBECTL = no_kubectl()


@unittest.skipIf(NO_KUBECTL, NO_KUBECTL)
class RenderedTest(Manifests):
    @classmethod
    def setUpClass(cls):
        cls.rendered = {name: kustomize(KUBERNETES / "overlays" / name) for name in OVERLAYS}
        cls.rendered["all components"] = composed(COMPONENTS)
        cls.rendered["keys and tls"] = composed(["keys", "tls"])
        cls.rendered["example"] = overlaid(example())

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.programs = Programs(folder.name)

    def each(self):
        for name, text in self.rendered.items():
            with self.subTest(name):
                yield name, [each for each in yaml.safe_load_all(text) if each]

    def test_manifests(self):
        for _, manifests in self.each():
            self.check(manifests)

    def test_schemas(self):
        for _, manifests in self.each():
            self.check_schemas(manifests)

    def test_one_namespace(self):
        for name, manifests in self.each():
            namespace = "llava" if name in (*OVERLAYS, "example") else "other"
            for manifest in manifests:
                place = "name" if manifest["kind"] == "Namespace" else "namespace"
                self.assertEqual(manifest["metadata"][place], namespace, manifest["kind"])

    def test_probes_speak_what_the_port_speaks(self):
        for name, manifests in self.each():
            for _, _, pod in workloads(manifests):
                (container,) = pod["containers"]
                for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                    self.assertEqual(container[probe]["httpGet"].get("scheme"),
                                     "HTTPS" if name not in OVERLAYS else None)

    def test_programs_take_their_settings(self):
        if missing := self.programs.missing():
            self.skipTest(f"not built: {', '.join(missing)}")
        for _, manifests in self.each():
            for name, _, pod in workloads(manifests):
                with self.subTest(name):
                    settings, error = self.programs.settings(name, manifests, pod)
                    self.assertIsNotNone(settings, error)
                    (container,) = pod["containers"]
                    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
                    self.assertEqual(ports, {"grpc": settings["port"], "metrics": settings["metrics-port"],
                                             **({"http": settings["http-port"]} if name == "gateway" else {})})
                    self.assertNotIn("lifecycle", container, "preStop would count below")
                    self.assertGreaterEqual(pod["terminationGracePeriodSeconds"], seconds(settings["drain-timeout"]) + 15)
                    self.check_bounds(name, settings, container["resources"])
                    if name == "gateway":
                        self.assertTrue(settings["data-dir"].endswith("/store"))

    def check_bounds(self, name, settings, resources):
        """A settings file replaces that of the base, and with it the bounds that fit the pod."""
        if name == "gateway":
            # Requests, bodies by HTTP, some messages that gRPC reads, the process itself; and an eighth for what nobody counts.
            held = (size(settings["request-bytes"]) + size(settings["http-bodies-bytes"]) +
                    16 * size(settings["max-message-bytes"]) + (256 << 20))
            self.assertLessEqual(held * 9 / 8, size(resources["limits"]["memory"]))
            return
        processors = math.ceil(cores(resources["requests"]["cpu"]))
        for threads in ("threads", *(["decode-threads"] if name == "vision" else [])):
            self.assertIn(threads.replace("-", "_"), self.programs.written(name), "the program sees the node's processors")
            self.assertTrue(1 <= settings[threads] <= processors, f"{threads}: {settings[threads]} of {processors}")

    def test_strangers_are_let_in_by_decision_only(self):
        """The base has none for the gateway; with components/tls nobody else may either."""
        if missing := self.programs.missing():
            self.skipTest(f"not built: {', '.join(missing)}")
        manifests = [each for each in yaml.safe_load_all(composed([])) if each]
        pods = {name: pod for name, _, pod in workloads(manifests)}
        settings, error = self.programs.settings("gateway", manifests, pods["gateway"])
        self.assertIsNone(settings)
        self.assertIn("--keys-file", error)
        manifests = [each for each in yaml.safe_load_all(self.rendered["keys and tls"]) if each]
        for name, _, pod in workloads(manifests):
            if name != "gateway":
                settings, error = self.programs.settings(name, manifests, pod)
                self.assertIsNotNone(settings, error)
                self.assertFalse(settings["insecure"])
                self.assertTrue(settings["tls-client-ca"])


if __name__ == "__main__":
    unittest.main()
