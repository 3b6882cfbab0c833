"""What the tests of deploy/kubernetes share: manifests as files and rendered, and the programs that they start."""

import os
import pathlib
import re
import shutil
import subprocess
import tempfile

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "deploy/kubernetes"
OVERLAYS = sorted(path.parent.name for path in KUBERNETES.glob("overlays/*/kustomization.yaml"))
COMPONENTS = sorted(path.parent.name for path in KUBERNETES.glob("components/*/kustomization.yaml"))
PROGRAMS = ("gateway", "vision", "llm")


def image(name):
    """What the Dockerfile says of an image: its ports, user and environment."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
    stage = re.search(rf"^FROM \S+ AS {name}\n(.*?)(?=^FROM |\Z)", text, re.M | re.S)[1]
    return {"ports": {int(port) for port in re.search(r"^EXPOSE (.+)$", stage, re.M)[1].split()},
            "user": re.search(r"^USER (\d+):(\d+)$", stage, re.M).groups(),
            "env": dict(re.findall(r"(LLAVA_\w+)=(\S+)", stage))}


def documents(path):
    with open(path, encoding="utf-8") as file:
        return [each for each in yaml.safe_load_all(file) if each]


def kustomize(folder):
    """The rendered manifests as text."""
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AssertionError(f"kubectl kustomize {folder}: {done.stderr}")
    return done.stdout


def overlaid(text):
    """Renders a kustomization.yaml as if it lay in overlays/NAME, with the settings of the base beside it."""
    with tempfile.TemporaryDirectory() as folder:
        near = os.path.relpath(KUBERNETES, os.path.realpath(folder))
        shutil.copytree(KUBERNETES / "base/settings", f"{folder}/settings")
        pathlib.Path(folder, "kustomization.yaml").write_text(text.replace("../..", near), encoding="utf-8")
        return kustomize(folder)


def composed(components):
    """The base with these components, in a namespace of another name."""
    return overlaid(yaml.safe_dump({
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "namespace": "other",
        "resources": ["../../base"], "components": [f"../../components/{each}" for each in components]}))


def example():
    """The overlay that deploy/kubernetes/README.md shows."""
    text = (KUBERNETES / "README.md").read_text(encoding="utf-8")
    return re.search(r"^```yaml\n(.*?)^```$", text, re.M | re.S)[1]


def of_kind(manifests, *kinds):
    return [each for each in manifests if each["kind"] in kinds]


def workloads(manifests):
    """(gateway|vision|llm, manifest, spec of its pods) of each workload."""
    for each in of_kind(manifests, "StatefulSet", "Deployment"):
        yield each["metadata"]["name"].removeprefix("llava-"), each, each["spec"]["template"]["spec"]


class Programs:
    """Runs a container of the manifests as far as its settings go, with the folders that it mounts."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.bin = pathlib.Path(os.environ.get("LLAVA_BIN_DIR", ROOT / "build/release/bin"))

    def missing(self):
        return [f"{self.bin}/llava-{name}" for name in PROGRAMS if not (self.bin / f"llava-{name}").is_file()]

    def volume(self, manifests, volume):
        """A folder with what the volume holds; secrets get what components/keys and components/tls say of them."""
        folder = self.folder / volume["name"]
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if "configMap" in volume:
            (found,) = [each for each in of_kind(manifests, "ConfigMap")
                        if each["metadata"]["name"] == volume["configMap"]["name"]]
            for name, text in found["data"].items():
                (folder / name).write_text(text, encoding="utf-8")
        elif volume.get("secret", {}).get("secretName") == "llava-keys":
            (folder / "keys.yaml").write_text("- {name: ann, sha256: " + 64 * "a" + "}\n", encoding="utf-8")
        elif "secret" in volume:
            subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
                            "-nodes", "-subj", "/CN=test", "-keyout", folder / "tls.key", "-out", folder / "tls.crt"],
                           check=True, capture_output=True)
            if volume["secret"]["secretName"] == "llava-backend-tls":
                shutil.copy(folder / "tls.crt", folder / "ca.crt")
        return folder

    def written(self, name):
        """The settings file that settings() gave last to the program, as text."""
        return (self.folder / "settings" / f"{name}.yaml").read_text(encoding="utf-8")

    def settings(self, name, manifests, pod):
        """(what --print-config prints, or None; the error)."""
        (container,) = pod["containers"]
        folders = {volume["name"]: self.volume(manifests, volume) for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: str(folders.get(mount["name"], self.folder)) for mount in container["volumeMounts"]}
        environment = {"PATH": os.environ["PATH"], **image(name)["env"]}
        for each in container["env"]:
            (path,) = [path for path in mounts if each["value"].startswith(path + "/")] or [""]
            environment[each["name"]] = mounts.get(path, "") + each["value"].removeprefix(path)
        command = [self.bin / f"llava-{name}", *container.get("args", []), "--print-config"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return (yaml.safe_load(done.stdout) if done.returncode == 0 else None), done.stderr
