"""What the manifests under cluster/kuberay/ may say: the fields that KubeRay 1.7 and Kubernetes publish, with their types.

Only the fields that are used, or that are easily mistaken for those, and each by its type alone. Kubernetes drops a field
that it does not know without a word, so a name with a typing error would do nothing.
"""

import re
from typing import Any

NAME = "[a-z]([a-z0-9-]{0,45}[a-z0-9])?"  # at most 47 characters
QUEUE = "kueue.x-k8s.io/queue-name"

OPEN, QUANTITIES = (str,), (str, int)  # any names, with values of these types
TEXT, NUMBER, YES_NO = str, int, bool

RESOURCES = {"requests": QUANTITIES, "limits": QUANTITIES}
VARIABLE = {
    "name": TEXT,
    "value": TEXT,
    "valueFrom": {"secretKeyRef": {"name": TEXT, "key": TEXT, "optional": YES_NO}},
}
CONTAINER = {
    "name": TEXT,
    "image": TEXT,
    "command": [TEXT],
    "env": [VARIABLE],
    "resources": RESOURCES,
    "volumeMounts": [{"name": TEXT, "mountPath": TEXT, "readOnly": YES_NO}],
    "securityContext": {"allowPrivilegeEscalation": YES_NO, "capabilities": {"drop": [TEXT]}, "privileged": YES_NO},
}
POD = {
    "automountServiceAccountToken": YES_NO,
    "serviceAccountName": TEXT,
    "restartPolicy": {"Always", "OnFailure", "Never"},
    "activeDeadlineSeconds": NUMBER,
    "nodeSelector": OPEN,
    "tolerations": [
        {
            "key": TEXT,
            "operator": {"Exists", "Equal"},
            "value": TEXT,
            "effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
        }
    ],
    "securityContext": {
        "runAsNonRoot": YES_NO,
        "runAsUser": NUMBER,
        "fsGroup": NUMBER,
        "seccompProfile": {"type": {"RuntimeDefault", "Localhost", "Unconfined"}},
    },
    "containers": [CONTAINER],
    "volumes": [{"name": TEXT, "persistentVolumeClaim": {"claimName": TEXT}}],
}
METADATA = {"name": TEXT, "namespace": TEXT, "labels": OPEN, "annotations": OPEN}
TEMPLATE = {"metadata": METADATA, "spec": POD}
HEAD = {
    "template": TEMPLATE,
    "rayStartParams": OPEN,
    "resources": OPEN,
    "labels": OPEN,
    "enableIngress": YES_NO,
    "serviceType": {"ClusterIP", "NodePort", "LoadBalancer"},
}
WORKERS = {
    "groupName": TEXT,
    "replicas": NUMBER,
    "minReplicas": NUMBER,
    "maxReplicas": NUMBER,
    "idleTimeoutSeconds": NUMBER,
    "priority": NUMBER,
    "numOfHosts": NUMBER,
    "resources": OPEN,
    "labels": OPEN,
    "rayStartParams": OPEN,
    "template": TEMPLATE,
}
RAY_CLUSTER = {
    "rayVersion": TEXT,
    "authOptions": {"mode": {"token", "disabled"}, "secretName": TEXT, "enableK8sTokenAuth": YES_NO},
    "enableInTreeAutoscaling": YES_NO,
    "autoscalerOptions": {
        "version": {"v1", "v2"},
        "idleTimeoutSeconds": NUMBER,
        "upscalingMode": {"Default", "Aggressive", "Conservative"},
        "resources": RESOURCES,
    },
    "headGroupSpec": HEAD,
    "workerGroupSpecs": [WORKERS],
    "suspend": YES_NO,
}
RAY_JOB = {
    "entrypoint": TEXT,
    "runtimeEnvYAML": TEXT,
    "backoffLimit": NUMBER,
    "activeDeadlineSeconds": NUMBER,
    "preRunningDeadlineSeconds": NUMBER,
    "shutdownAfterJobFinishes": YES_NO,
    "ttlSecondsAfterFinished": NUMBER,
    "submissionMode": {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"},
    "submitterPodTemplate": TEMPLATE,
    "submitterConfig": {"backoffLimit": NUMBER},
    "rayClusterSpec": RAY_CLUSTER,
    "suspend": YES_NO,
}
SELECTOR = {"matchLabels": OPEN}
RULE = {
    "from": [{"podSelector": SELECTOR, "namespaceSelector": SELECTOR}],
    "ports": [{"protocol": {"TCP", "UDP"}, "port": NUMBER}],
}
KINDS: dict[tuple[str, str], dict[str, Any]] = {
    ("ray.io/v1", "RayJob"): {"spec": RAY_JOB},
    ("ray.io/v1", "RayCluster"): {"spec": RAY_CLUSTER},
    ("v1", "Pod"): {"spec": POD},
    ("v1", "ServiceAccount"): {"automountServiceAccountToken": YES_NO},
    ("v1", "PersistentVolumeClaim"): {
        "spec": {"accessModes": [TEXT], "storageClassName": TEXT, "resources": {"requests": QUANTITIES}}
    },
    ("networking.k8s.io/v1", "NetworkPolicy"): {
        "spec": {"podSelector": SELECTOR, "policyTypes": [TEXT], "ingress": [RULE]}
    },
}
REQUIRED = {
    id(RAY_CLUSTER): {"headGroupSpec"},
    id(HEAD): {"rayStartParams", "template"},
    id(WORKERS): {"groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"},
    id(CONTAINER): {"name", "image"},
    id(POD): {"containers"},
}


def check_manifest(document: dict[str, Any]) -> None:
    """Raises AssertionError where `document` has a field that its kind has not, lacks one or has one of another type."""
    kind = KINDS.get((document["apiVersion"], document["kind"]))
    assert kind is not None, f"no such kind: {document['apiVersion']} {document['kind']}"
    _check(document, {"apiVersion": TEXT, "kind": TEXT, "metadata": METADATA, **kind}, document["kind"])
    spec = document.get("spec", {})
    if document["kind"] == "RayJob":
        assert re.fullmatch(NAME, document["metadata"]["name"]), "the operator refuses such a name"
        assert spec.get("shutdownAfterJobFinishes") or not spec.get("ttlSecondsAfterFinished"), "no time to live"
        _check_cluster(spec["rayClusterSpec"], document)
    elif document["kind"] == "RayCluster":
        assert re.fullmatch(NAME, document["metadata"]["name"]), "the operator refuses such a name"
        _check_cluster(spec, document)


def _check_cluster(spec: dict[str, Any], document: dict[str, Any]) -> None:
    """What KubeRay's operator and Kueue refuse of the cluster `spec` in `document`, though its fields are known."""
    if spec.get("authOptions", {}).get("mode") == "token":
        assert spec.get("rayVersion"), "the operator asks for rayVersion where there is a token"
    if spec.get("enableInTreeAutoscaling"):
        groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
        policies = {group["template"]["spec"].get("restartPolicy", "Never") for group in groups}
        assert policies == {"Never"}, "the operator refuses another restartPolicy with autoscaler v2"
        assert QUEUE not in document["metadata"].get("labels", {}), "Kueue refuses what scales itself"


def _check(value: Any, expected: Any, where: str) -> None:
    if isinstance(expected, tuple):
        assert isinstance(value, dict), where
        assert all(type(key) is str and type(one) in expected for key, one in value.items()), f"{where}: {value}"
    elif isinstance(expected, dict):
        assert isinstance(value, dict), f"{where}: {value!r}"
        assert value.keys() <= expected.keys(), f"{where} has no {value.keys() - expected.keys()}"
        assert REQUIRED.get(id(expected), set()) <= value.keys(), where
        for key, one in value.items():
            _check(one, expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert isinstance(value, list), f"{where}: {value!r}"
        for idx, one in enumerate(value):
            _check(one, expected[0], f"{where}[{idx}]")
    elif isinstance(expected, set):
        assert value in expected, f"{where}: {value!r}"
    else:
        assert type(value) is expected, f"{where}: {value!r}"
