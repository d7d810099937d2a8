"""The files under cluster/, as far as one machine without a cloud can tell: their form, and the commands in them."""

import functools
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from adadecode.settings import EvalConfig, build_settings
from tests.command_lines import comments, parse, program_commands
from tests.kuberay import QUEUE, check_manifest

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
KUBERAY, LAUNCHERS = CLUSTER / "kuberay", sorted((CLUSTER / "ray-up").glob("*.yaml"))
YAML_FILES = sorted(CLUSTER.rglob("*.yaml"))
SBATCH = CLUSTER / "slurm" / "eval.sbatch"
RAY_VERSION = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)[1]
TOKEN = "~/.ray/auth_token"
LEAST_GROUP = {"rayStartParams": {}, "template": {"spec": {"containers": [{"name": "ray", "image": "x"}]}}}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@functools.cache
def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def of_kind(kind: str) -> list[dict[str, Any]]:
    """Every manifest of that kind."""
    return [found for path in sorted(KUBERAY.glob("*.yaml")) for found in documents(path) if found["kind"] == kind]


def ray_clusters() -> list[dict[str, Any]]:
    """The RayClusterSpecs of all manifests."""
    return [job["spec"]["rayClusterSpec"] for job in of_kind("RayJob")] + [one["spec"] for one in of_kind("RayCluster")]


def pod_templates() -> list[dict[str, Any]]:
    groups = [[cluster["headGroupSpec"], *cluster["workerGroupSpecs"]] for cluster in ray_clusters()]
    return [group["template"] for of_cluster in groups for group in of_cluster]


def pods() -> list[dict[str, Any]]:
    return [template["spec"] for template in pod_templates()] + [pod["spec"] for pod in of_kind("Pod")]


def entrypoint(job: dict[str, Any]) -> list[str]:
    (command,) = program_commands(job["spec"]["entrypoint"])
    return command


@pytest.mark.parametrize("path", [*YAML_FILES, SBATCH], ids=name)
def test_commands_in_comments_are_ones_the_program_takes(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    commands = list(program_commands(comments(path.read_text(encoding="utf-8"))))
    for command in commands:
        parse(command)
    if "from nothing" in path.read_text(encoding="utf-8").lower():
        assert commands


@pytest.mark.parametrize("path", [*YAML_FILES, SBATCH], ids=name)
def test_files_that_comments_name_are_there(path):
    named = re.findall(r"cluster/[\w./-]+\.\w+", path.read_text(encoding="utf-8"))
    assert [one for one in named if not (ROOT / one).exists()] == []


def test_the_commands_that_check_a_gpu_are_ones_the_program_takes(monkeypatch):
    monkeypatch.chdir(ROOT)
    script = (ROOT / "tests" / "gpu" / "check.sh").read_text(encoding="utf-8")
    commands = list(program_commands(script.replace('"$@"', "")))
    assert [command[0] for command in commands] == ["bench", "doctor", "eval", "eval", "tune"]
    for command in commands:
        parse(command)
    shapes = re.findall(r"^bench \S+ (.*)$", script, re.MULTILINE)
    assert len(shapes) == 11
    for flags in shapes:
        parse(["bench", *flags.split()])


def test_the_demo_config_runs_all_embedded_prompts_on_two_workers():
    config = build_settings(EvalConfig, ROOT / "adadecode" / "recipes" / "demo.yaml", {})
    assert (config.task, config.limit, config.workers, config.local) == ("demo", None, 2, False)
    assert config.methods == ("vanilla", "vanilla-w1", "adadecode")
    assert (config.dtype, config.decode.max_new_tokens) == ("bfloat16", 96)


def test_make_demo_uses_the_demo_config(monkeypatch):
    monkeypatch.chdir(ROOT)
    recipe = re.search(r"^demo:.*\n\t(.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1]
    (command,) = program_commands(recipe.replace("$(BIN)/", ""))
    assert parse(command)["config_file"] == Path("adadecode/recipes/demo.yaml")


# KubeRay


@pytest.mark.parametrize("path", sorted(KUBERAY.glob("*.yaml")), ids=name)
def test_manifests_have_the_fields_and_values_that_kuberay_and_kubernetes_know(path):
    for document in documents(path):
        check_manifest(document)


@pytest.mark.parametrize(
    ("planted", "found"),
    [
        ({"backOffLimit": 2}, "RayJob.spec has no {'backOffLimit'}"),
        ({"backoffLimit": "2"}, "RayJob.spec.backoffLimit"),
        ({"rayClusterSpec": {"authOptions": {"mode": "tokens"}, "headGroupSpec": {}}}, "authOptions.mode: 'tokens'"),
        ({"rayClusterSpec": {"headGroupSpec": {"rayStartParams": {"num-cpus": 0}, "template": {}}}}, "rayStartParams"),
        ({"rayClusterSpec": {}}, "RayJob.spec.rayClusterSpec"),
        ({"ttlSecondsAfterFinished": 60, "shutdownAfterJobFinishes": False}, "time to live"),
        ({"rayClusterSpec": {"authOptions": {"mode": "token"}, "headGroupSpec": LEAST_GROUP}}, "asks for rayVersion"),
        (
            {
                "rayClusterSpec": {
                    "enableInTreeAutoscaling": True,
                    "headGroupSpec": LEAST_GROUP,
                    "workerGroupSpecs": [],
                }
            },
            "Kueue refuses",
        ),
    ],
)
def test_a_wrong_field_of_a_manifest_is_found(planted, found):
    (job, *_) = of_kind("RayJob")
    with pytest.raises(AssertionError, match=re.escape(found)):
        check_manifest({**job, "spec": {**job["spec"], **planted}})


def test_the_entrypoints_are_commands_of_ours_and_ask_for_no_more_workers_than_there_are_pods():
    jobs = of_kind("RayJob")
    assert len(jobs) == 2
    for job in jobs:
        command = entrypoint(job)
        flags = parse(command)
        assert command[0] == "eval"
        (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        assert flags["workers"] <= group["replicas"] == group["minReplicas"] == group["maxReplicas"]
        assert flags["device"] == "cuda"


def test_ray_jobs_retry_end_in_time_clean_up_and_may_be_queued():
    for job in of_kind("RayJob"):
        spec = job["spec"]
        assert spec["backoffLimit"] >= 1
        assert spec["activeDeadlineSeconds"] > spec["preRunningDeadlineSeconds"] > 0
        assert spec["shutdownAfterJobFinishes"] is True, "Kueue asks for it too"
        assert spec["ttlSecondsAfterFinished"] > 0
        assert job["metadata"]["labels"][QUEUE]


def test_every_ray_cluster_asks_for_a_token_and_takes_no_work_on_its_head():
    assert len(ray_clusters()) == 3
    for cluster in ray_clusters():
        assert cluster["authOptions"] == {"mode": "token"}
        assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}, "no dashboard-host"
        assert cluster["headGroupSpec"].get("serviceType", "ClusterIP") == "ClusterIP"
        assert not cluster["headGroupSpec"].get("enableIngress")
        assert "nvidia.com/gpu" not in str(cluster["headGroupSpec"])


def test_the_standing_cluster_costs_no_gpu_while_nothing_runs():
    (cluster,) = of_kind("RayCluster")
    spec = cluster["spec"]
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["idleTimeoutSeconds"] <= 600
    (group,) = spec["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"]) == (0, 0)
    assert group["maxReplicas"] > 0
    text = (KUBERAY / "raycluster.yaml").read_text(encoding="utf-8")
    (submit,) = [command for command in program_commands(comments(text)) if command[0] == "submit"]
    assert parse(submit)["workers"] == "auto"


def test_every_worker_pod_has_one_gpu_of_one_kind_and_may_run_where_gpus_are():
    for cluster in ray_clusters():
        (group,) = cluster["workerGroupSpecs"]
        pod = group["template"]["spec"]
        resources = pod["containers"][0]["resources"]
        assert resources["limits"] == resources["requests"]
        assert resources["limits"]["nvidia.com/gpu"] == 1
        assert len(pod["nodeSelector"]) == 1
        assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]


def test_pods_are_not_root_gain_no_rights_and_hold_no_key_to_kubernetes():
    """Whoever may submit a job runs code in them. Only the autoscaler, beside a standing cluster's head, needs a key."""
    may_hold_a_key = [cluster["spec"]["headGroupSpec"]["template"]["spec"] for cluster in of_kind("RayCluster")]
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
        assert pod in may_hold_a_key or pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()


def test_results_are_on_storage_that_every_pod_sees_or_in_a_bucket():
    (claim,) = of_kind("PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    outs = {}
    for job in of_kind("RayJob"):
        out = parse(entrypoint(job))["out"]
        cluster = job["spec"]["rayClusterSpec"]
        of_job = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
        mounts = [mount for pod in of_job for mount in pod["containers"][0].get("volumeMounts", ())]
        outs[out] = len(mounts)
        assert "://" in out or all(Path(out).is_relative_to(mount["mountPath"]) for mount in mounts)
    assert outs == {"/results/demo": 2, "s3://BUCKET/results/demo": 0}
    for pod in pods():
        for mount in pod["containers"][0].get("volumeMounts", ()):
            (volume,) = [volume for volume in pod["volumes"] if volume["name"] == mount["name"]]
            assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    accounts = {account["metadata"]["name"] for account in of_kind("ServiceAccount")}
    assert {pod["serviceAccountName"] for pod in pods() if "serviceAccountName" in pod} == accounts


def test_all_pods_have_one_image_and_secrets_come_from_kubernetes_alone():
    containers = [container for pod in pods() for container in pod["containers"]]
    assert len({container["image"] for container in containers}) == 1
    for variable in (variable for container in containers for variable in container.get("env", ())):
        assert ("value" in variable) == (variable["name"] == "HF_HOME"), variable
        assert variable["name"] == "HF_HOME" or "secretKeyRef" in variable["valueFrom"]


def test_only_the_clusters_own_pods_its_operator_and_prometheus_reach_a_pod():
    (policy,) = of_kind("NetworkPolicy")
    labels = policy["spec"]["podSelector"]["matchLabels"]
    assert all(template["metadata"]["labels"] == labels for template in pod_templates())
    own, submitters, prometheus = policy["spec"]["ingress"]
    assert own == {"from": [{"podSelector": {"matchLabels": labels}}]}
    jobs = {job["metadata"]["name"] for job in of_kind("RayJob")}
    assert {source["podSelector"]["matchLabels"].get("job-name") for source in submitters["from"]} == {*jobs, None}
    assert all(rule["ports"] for rule in (submitters, prometheus))


# Ray's cluster launcher


@pytest.fixture(scope="module")
def launchers() -> dict[str, dict[str, Any]]:
    return {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in LAUNCHERS}


def test_the_launchers_pass_rays_own_check(launchers):
    """What `ray up` does before it starts anything, less the cloud's own part."""
    folder = importlib.util.find_spec("ray").submodule_search_locations[0]  # importing its autoscaler takes seconds
    schema = json.loads((Path(folder) / "autoscaler" / "ray-schema.json").read_bytes())
    assert launchers.keys() == {"aws", "gcp", "own-machines"}
    for launcher in launchers.values():
        jsonschema.validate(launcher, schema)


@pytest.mark.slow
@pytest.mark.parametrize("path", LAUNCHERS, ids=name)
def test_ray_fills_in_and_takes_the_launcher(path, monkeypatch):
    from ray.autoscaler._private.util import prepare_config, validate_config

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    config = prepare_config(yaml.safe_load(path.read_text(encoding="utf-8")))
    validate_config(config)
    types = config["available_node_types"]
    assert config["head_node_type"] in types
    assert sum(node["max_workers"] for node in types.values()) == config["max_workers"]


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_a_cloud_has_a_head_without_cpus_and_spot_workers_that_are_there_when_asked_for(launchers, cloud):
    launcher = launchers[cloud]
    types = launcher["available_node_types"]
    head = types[launcher["head_node_type"]]
    (gpu,) = (node for key, node in types.items() if key != launcher["head_node_type"])
    spot = {
        "aws": {"InstanceMarketOptions": {"MarketType": "spot"}},
        "gcp": {"scheduling": {"provisioningModel": "SPOT"}},
    }
    assert head["resources"] == {"CPU": 0}
    for key, values in spot[cloud].items():
        assert key not in head["node_config"]
        assert values.items() <= gpu["node_config"][key].items()
    assert (gpu["min_workers"], gpu["max_workers"]) == (0, launcher["max_workers"])
    assert launcher["idle_timeout_minutes"] <= 10
    assert launcher["provider"]["cache_stopped_nodes"] is False


def test_own_machines_do_no_work_on_the_head(launchers):
    starts = " ".join(launchers["own-machines"]["head_start_ray_commands"])
    assert "--num-cpus=0 --num-gpus=0" in starts


@pytest.mark.parametrize("path", LAUNCHERS, ids=name)
def test_the_launchers_example_fits_what_it_starts_and_ends_it(path, launchers):
    launcher = launchers[path.stem]
    text = comments(path.read_text(encoding="utf-8"))
    (submit,) = [command for command in program_commands(text) if command[0] == "submit"]
    flags = parse(submit)
    if path.stem == "own-machines":
        assert flags["workers"] <= len(launcher["provider"]["worker_ips"])
    else:
        assert flags["workers"] == "auto"
    assert flags["out"].startswith(("/results/", "gs://"))
    assert flags["out"].startswith("gs://") or any("/results" in step for step in launcher["setup_commands"])
    for step in ("ray up", "ray dashboard", "ray down"):
        assert f"{step} {path.relative_to(ROOT)}" in text


@pytest.mark.parametrize("path", LAUNCHERS, ids=name)
def test_the_launcher_copies_what_exists_and_all_that_an_install_needs(path, launchers):
    sources = {local for local in launchers[path.stem]["file_mounts"].values() if not local.startswith("~")}
    assert [local for local in sources if not (ROOT / local).exists()] == []
    assert sources == set(copied_by_dockerfile())
    assert any("--constraint ~/adadecode/constraints.txt" in step for step in launchers[path.stem]["setup_commands"])


@pytest.mark.parametrize("path", LAUNCHERS, ids=name)
def test_the_launcher_gives_every_node_the_token_and_keeps_the_dashboard_on_the_head(path, launchers):
    launcher = launchers[path.stem]
    assert launcher["file_mounts"]["/home/ubuntu/.ray/auth_token"] == TOKEN
    assert f"chmod 600 {TOKEN}" in launcher["setup_commands"]
    assert any("RAY_AUTH_MODE=token" in step for step in launcher["initialization_commands"])
    starts = " ".join([*launcher["head_start_ray_commands"], *launcher["worker_start_ray_commands"]])
    assert "ray start --head" in starts
    assert "--dashboard-host" not in starts


# The image


def dockerfile() -> list[str]:
    """The instructions, each on one line."""
    text = (CLUSTER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def copied_by_dockerfile() -> list[str]:
    """The sources of every COPY."""
    return [source for line in dockerfile() if line.startswith("COPY ") for source in line.split()[1:-1]]


def test_the_dockerfile_copies_what_exists_and_installs_the_pinned_versions():
    sources = copied_by_dockerfile()
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert {"pyproject.toml", "constraints.txt", "adadecode", "ray_jobs"} <= set(sources)
    (install,) = [line for line in dockerfile() if "pip install" in line]
    assert "--no-cache-dir" in install
    assert "--constraint constraints.txt" in install


def test_the_dockerfile_has_a_pinned_base_and_ends_as_a_user_that_kubernetes_can_tell_from_root():
    lines = dockerfile()
    instructions = [line.split()[0] for line in lines]
    assert set(instructions) <= {"ARG", "FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER"}, (
        "no ADD, which fetches and unpacks"
    )
    assert lines[:2] == [lines[0], "FROM ${BASE}"]
    assert re.fullmatch(r"ARG BASE=python:3\.11\.\d+-slim-\w+@sha256:[0-9a-f]{64}", lines[0])
    (user,) = [line for line in lines if line.startswith("USER ")]
    assert re.fullmatch(r"USER [1-9]\d*:[1-9]\d*", user), "by number: runAsNonRoot knows no names"
    assert f"--uid {user.split()[1].split(':')[0]}" in " ".join(lines)
    assert not any(line.startswith("RUN ") for line in lines[lines.index(user) :])
    for line in lines:
        if "apt-get install" in line:
            assert "apt-get update &&" in line
            assert "--no-install-recommends" in line
            assert line.endswith("rm -rf /var/lib/apt/lists/*")
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in " ".join(lines)
    assert not re.search(r"(?i)(token|password|secret|api_key)\w*=", " ".join(lines))


def test_only_what_the_image_is_made_of_leaves_for_the_builder():
    lines = (CLUSTER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == set(copied_by_dockerfile())
    assert "**/.env*" in rules[1:]


def test_every_node_has_a_compiler_for_the_kernels(launchers):
    """Without one a CPU decodes 30 times slower, and `--kernels compile` not at all."""
    assert any(re.search(r"^RUN apt-get .*install .* g\+\+ ", line) for line in dockerfile())
    for launcher in launchers.values():
        assert any(re.search(r"(apt-get .*install|command -v) .*\bg\+\+", step) for step in launcher["setup_commands"])


@pytest.mark.parametrize("path", [*YAML_FILES, CLUSTER / "Dockerfile"], ids=name)
def test_ray_versions_are_the_pinned_one(path):
    text = path.read_text(encoding="utf-8")
    named = re.findall(r"""(?:rayVersion: |ray==|rayproject/ray:)["']?([\w.]+)""", text)
    assert set(named) <= {RAY_VERSION}
    if "kind: RayJob" in text or "kind: RayCluster" in text:
        assert named, "the operator needs rayVersion for token authentication"
