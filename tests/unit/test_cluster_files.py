import importlib.util
import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from adadecode.settings import EvalConfig, build_settings
from tests.command_lines import comments, parse, program_commands

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
YAML_FILES = sorted(CLUSTER.rglob("*.yaml"))
RAY_VERSION = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)[1]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(scope="module")
def ray_job() -> dict:
    documents = yaml.safe_load_all((CLUSTER / "kuberay" / "rayjob.yaml").read_text(encoding="utf-8"))
    return next(document for document in documents if document["kind"] == "RayJob")


@pytest.fixture(scope="module")
def claim() -> dict:
    documents = yaml.safe_load_all((CLUSTER / "kuberay" / "rayjob.yaml").read_text(encoding="utf-8"))
    return next(document for document in documents if document["kind"] == "PersistentVolumeClaim")


@pytest.fixture(scope="module")
def launcher() -> dict:
    return yaml.safe_load((CLUSTER / "ray-up" / "cluster.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", YAML_FILES, ids=name)
def test_commands_in_comments_are_ones_the_program_takes(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command in program_commands(comments(path.read_text(encoding="utf-8"))):
        parse(command)


def test_the_commands_that_check_a_gpu_are_ones_the_program_takes(monkeypatch):
    monkeypatch.chdir(ROOT)
    script = (ROOT / "tests" / "gpu" / "check.sh").read_text(encoding="utf-8")
    commands = list(program_commands(script.replace('"$@"', "")))
    assert [command[0] for command in commands] == ["bench", "doctor", "eval", "tune"]
    for command in commands:
        parse(command)
    shapes = re.findall(r"^bench \S+ (.*)$", script, re.MULTILINE)
    assert len(shapes) == 7
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


def test_the_ray_jobs_entrypoint_is_a_command_of_ours(ray_job):
    spec = ray_job["spec"]
    (command,) = program_commands(spec["entrypoint"])
    flags = parse(command)
    assert command[0] == "eval"
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert flags["workers"] <= group["replicas"] == group["minReplicas"] == group["maxReplicas"]
    assert flags["device"] == "cuda"


def test_the_ray_job_retries_cleans_up_and_asks_for_a_token(ray_job):
    spec = ray_job["spec"]
    assert ray_job["apiVersion"] == "ray.io/v1"
    assert spec["backoffLimit"] >= 1
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_every_pod_of_the_ray_job_sees_the_results_and_has_one_image(ray_job, claim):
    cluster = ray_job["spec"]["rayClusterSpec"]
    (command,) = program_commands(ray_job["spec"]["entrypoint"])
    out = parse(command)["out"]
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    images = set()
    for pod in pods:
        (container,), (volume,) = pod["containers"], pod["volumes"]
        (mount,) = container["volumeMounts"]
        images.add(container["image"])
        assert mount["name"] == volume["name"]
        assert Path(out).is_relative_to(mount["mountPath"])
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert len(images) == 1
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_each_worker_pod_has_one_gpu_and_the_head_takes_no_shards(ray_job):
    cluster = ray_job["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    resources = group["template"]["spec"]["containers"][0]["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == 1
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}


def test_the_launcher_file_fits_rays_own_schema(launcher):
    folder = importlib.util.find_spec("ray").submodule_search_locations[0]  # without importing Ray
    schema = json.loads((Path(folder) / "autoscaler" / "ray-schema.json").read_bytes())
    jsonschema.validate(launcher, schema)


def test_the_launcher_has_a_head_without_cpus_and_spot_workers(launcher):
    types = launcher["available_node_types"]
    head = types[launcher["head_node_type"]]
    (gpu,) = (node for key, node in types.items() if key != launcher["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert gpu["min_workers"] == gpu["max_workers"] == launcher["max_workers"]


def test_the_launchers_example_asks_for_no_more_workers_than_it_starts(launcher):
    text = (CLUSTER / "ray-up" / "cluster.yaml").read_text(encoding="utf-8")
    (command,) = program_commands(comments(text))
    flags = parse(command)
    assert flags["workers"] <= launcher["max_workers"]
    assert Path(flags["out"]).is_relative_to("/results")
    assert any("/results nfs4" in step for step in launcher["setup_commands"])


def test_the_launcher_copies_what_exists_and_all_that_an_install_needs(launcher):
    sources = {local for local in launcher["file_mounts"].values() if not local.startswith("~")}
    assert [local for local in sources if not (ROOT / local).exists()] == []
    assert sources == set(copied_by_dockerfile())


def test_the_launcher_gives_every_node_the_token_and_keeps_the_dashboard_on_the_head(launcher):
    assert launcher["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("RAY_AUTH_MODE=token" in step for step in launcher["initialization_commands"])
    starts = " ".join(launcher["head_start_ray_commands"])
    assert "ray start --head" in starts
    assert "--dashboard-host" not in starts


def copied_by_dockerfile() -> list[str]:
    """The sources of every COPY."""
    lines = (CLUSTER / "Dockerfile").read_text(encoding="utf-8").splitlines()
    return [source for line in lines if line.startswith("COPY ") for source in line.split()[1:-1]]


def test_the_dockerfile_copies_what_exists_and_installs_the_pinned_versions():
    sources = copied_by_dockerfile()
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert {"pyproject.toml", "constraints.txt", "adadecode", "ray_jobs"} <= set(sources)
    assert "--constraint constraints.txt" in (CLUSTER / "Dockerfile").read_text(encoding="utf-8")


def test_every_node_has_a_compiler_for_the_kernels(launcher):
    """Without one a CPU decodes 30 times slower, and `--kernels compile` not at all."""
    text = (CLUSTER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    assert re.search(r"^RUN apt-get .*install .* g\+\+ ", text, re.MULTILINE)
    assert any(re.search(r"apt-get .*install .*\bg\+\+", step) for step in launcher["setup_commands"])


@pytest.mark.parametrize("path", [*YAML_FILES, CLUSTER / "Dockerfile"], ids=name)
def test_ray_versions_are_the_pinned_one(path):
    text = path.read_text(encoding="utf-8")
    named = re.findall(r"""(?:rayVersion: |ray==|rayproject/ray:)["']?([\w.]+)""", text)
    assert set(named) <= {RAY_VERSION}
    if path.name == "rayjob.yaml":
        assert named, "the operator needs rayVersion for token authentication"
