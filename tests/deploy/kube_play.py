#!/usr/bin/env python3
"""Makes of manifests what `podman kube play` can run on one machine without a network for containers. Usage:
kube_play.py FOLDER <MANIFESTS >REDUCED. Used by deploy/container_check.sh.

Containers, their settings, users and rights stay as they are. Services become names of the loopback address, where the
containers listen on the host's network; emptyDirs and claims become folders in FOLDER that anybody may write, as a kubelet makes them (podman's
would be root's); the StatefulSet becomes a Deployment. Who watches, spreads and guards pods goes: probes, budgets,
network policies, accounts."""

import pathlib
import sys

import yaml

WORKLOADS = ("Deployment", "StatefulSet")
NOT_KNOWN = ("topologySpreadConstraints", "serviceAccountName", "tolerations")
NOT_FOR_CONTAINERS = ("ports", "startupProbe", "livenessProbe", "readinessProbe")


def host_path(folder, name):
    path = folder / name
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o777)
    return {"hostPath": {"path": str(path), "type": "Directory"}}


def hosts(folder, manifests):
    """Podman gives containers on the host's network no names of the manifest's."""
    names = [each["metadata"]["name"] for each in manifests if each["kind"] == "Service"]
    (folder / "hosts").write_text(f"127.0.0.1 localhost {' '.join(names)}\n", encoding="utf-8")
    return {"name": "hosts", "hostPath": {"path": str(folder / "hosts"), "type": "File"}}


def reduced(manifests, folder):
    names = hosts(folder, manifests)
    found = [each for each in manifests if each["kind"] in ("ConfigMap", "Secret")]
    for manifest in manifests:
        manifest["metadata"].pop("namespace", None)
        if manifest["kind"] not in WORKLOADS:
            continue
        name = manifest["metadata"]["name"]
        pod = manifest["spec"]["template"]["spec"]
        claims = [{"name": claim["metadata"]["name"], "persistentVolumeClaim": {}}
                  for claim in manifest["spec"].get("volumeClaimTemplates", [])]
        pod["volumes"] = [{"name": volume["name"], **host_path(folder, f'{name}-{volume["name"]}')}
                          if "emptyDir" in volume or "persistentVolumeClaim" in volume else volume
                          for volume in [*pod["volumes"], *claims]] + [names]
        # A first container that is started again and again never ends for podman.
        pod.update(restartPolicy="Never", hostNetwork=True)
        for key in NOT_KNOWN:
            pod.pop(key, None)
        for container in pod["containers"]:
            for key in NOT_FOR_CONTAINERS:
                container.pop(key, None)
            container["env"].append({"name": f'{name.replace("-", "_").upper()}_HOST', "value": "127.0.0.1"})
            container["volumeMounts"].append({"name": "hosts", "mountPath": "/etc/hosts", "readOnly": True})
        found.append({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": manifest["metadata"],
                      "spec": {"replicas": 1, **{key: manifest["spec"][key] for key in ("selector", "template")}}})
    return found


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    yaml.safe_dump_all(reduced([each for each in yaml.safe_load_all(sys.stdin) if each],
                               pathlib.Path(sys.argv[1]).resolve()), sys.stdout)
