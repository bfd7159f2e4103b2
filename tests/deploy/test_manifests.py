"""Manifests for Kubernetes and Ray: they meet their schemas, hang together, and run what the program understands."""

import importlib.util
import json
import re
import shutil
import subprocess
from itertools import chain
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from pimserve import __version__
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from tests.deploy.custom_resources import SCHEMAS
from tests.deploy.queries import panel_queries, rules
from tests.deploy.shared import DEPLOY, METRICS_PORT, ROOT, SERVICE_PORT, documents, most_bytes, parsed

KUBERNETES = "1.33"
RESOURCES = {
    f"{path.relative_to(DEPLOY)}: {document['kind']}": document
    for path in sorted(chain((DEPLOY / "kubernetes").rglob("*.yaml"), (DEPLOY / "kuberay").glob("*.yaml")))
    for document in documents(path)
    if not document["apiVersion"].startswith("kustomize.config.k8s.io/")
}
KINDS = {document["kind"]: document for document in RESOURCES.values()}
KUBERAY = {name: document for name, document in RESOURCES.items() if document["kind"] in {"RayCluster", "RayJob"}}


def pod_specs(document):
    """(where, pod spec) of every pod template below a resource."""

    def below(where, value):
        if isinstance(value, dict):
            for key, one in value.items():
                if key in {"template", "submitterPodTemplate"}:
                    yield f"{where}.{key}", one["spec"]
                else:
                    yield from below(f"{where}.{key}", one)
        elif isinstance(value, list):
            for number, one in enumerate(value):
                yield from below(f"{where}[{number}]", one)

    return below("", document)


PODS = {f"{name}{where}": spec for name, document in RESOURCES.items() for where, spec in pod_specs(document)}


def test_every_kind_is_here():
    core = {"ConfigMap", "Deployment", "NetworkPolicy", "PersistentVolumeClaim", "Service", "ServiceAccount"}
    assert set(KINDS) == core | set(SCHEMAS)
    assert len(PODS) == 1 + 2 + 3


@pytest.mark.parametrize("name", RESOURCES)
def test_resources_meet_their_schema(name):
    document = RESOURCES[name]
    if document["kind"] in SCHEMAS:
        jsonschema.validate(document, SCHEMAS[document["kind"]])
    else:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", PODS)
def test_pods_meet_the_schema_and_the_restricted_standard(name):
    spec = PODS[name]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": spec}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 10001
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    volumes = {volume["name"] for volume in spec.get("volumes", ())}
    for container in spec["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert set(container["resources"]["limits"]) >= set(container["resources"]["requests"]) >= {"cpu", "memory"}
        assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes
        assert container["image"] in {"pimserve", f"pimserve-ray:{__version__}"}


@pytest.mark.medium
@pytest.mark.parametrize("name", ["base", "overlays/monitored"])
def test_kustomize_renders(name):
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("there is no kubectl to render kustomizations with")
    done = subprocess.run(
        [kubectl, "kustomize", DEPLOY / "kubernetes" / name], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    made = {document["kind"]: document for document in yaml.safe_load_all(done.stdout)}
    for kind, document in made.items():
        if kind in SCHEMAS:
            jsonschema.validate(document, SCHEMAS[kind])
        else:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
    labels = made["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selected = [made["Deployment"]["spec"]["selector"]["matchLabels"], made["Service"]["spec"]["selector"]]
    selected.append(made["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"])
    if name != "base":
        selected.append(made["PodMonitor"]["spec"]["selector"]["matchLabels"])
    for selector in selected:
        assert selector
        assert selector.items() <= labels.items()
    container = made["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == f"pimserve:{__version__}"


def test_kustomizations_list_every_file():
    for path in (DEPLOY / "kubernetes").rglob("kustomization.yaml"):
        (document,) = documents(path)
        listed = {
            (path.parent / entry).resolve() for key in ("resources", "components") for entry in document.get(key, ())
        }
        assert all(entry.exists() for entry in listed)
        assert {file.resolve() for file in path.parent.glob("*.yaml")} - {path.resolve()} <= listed


def test_the_service_listens_where_others_look():
    spec = KINDS["Deployment"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    values = RESOURCES["kubernetes/base/configmap.yaml: ConfigMap"]["data"]
    arguments = [re.sub(r"\$\((\w+)\)", lambda name: values[name[1]], text) for text in container["args"]]
    given = parsed(arguments)
    assert given["listen"] == f"0.0.0.0:{SERVICE_PORT}"
    assert given["metrics"] == f"0.0.0.0:{METRICS_PORT}"
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": SERVICE_PORT, "metrics": METRICS_PORT}
    assert {port["targetPort"] for port in KINDS["Service"]["spec"]["ports"]} == {"grpc"}
    assert {rule["port"] for way in KINDS["NetworkPolicy"]["spec"]["ingress"] for rule in way["ports"]} == set(ports)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["grpc"] == {"port": SERVICE_PORT}
    mounts = {mount["name"]: Path(mount["mountPath"]) for mount in container["volumeMounts"]}
    assert given["data"] == mounts["data"]
    secret = next(volume["secret"] for volume in spec["volumes"] if volume["name"] == "tokens")
    files = {mounts["tokens"] / item["path"]: item["key"] for item in secret["items"]}
    assert {given["token_file"], given["metrics_token_file"]} == set(files)
    (endpoint,) = KINDS["PodMonitor"]["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == "metrics"
    credentials = endpoint["authorization"]["credentials"]
    assert credentials == {"name": secret["secretName"], "key": files[given["metrics_token_file"]]}
    assert spec["serviceAccountName"] == KINDS["ServiceAccount"]["metadata"]["name"]
    claims = {volume["persistentVolumeClaim"]["claimName"] for volume in spec["volumes"] if volume["name"] == "data"}
    assert claims == {KINDS["PersistentVolumeClaim"]["metadata"]["name"]}
    assert [source["configMapRef"]["name"] for source in container["envFrom"]] == ["pimserve"]


def test_rules_and_dashboards_find_what_the_pod_monitor_scrapes():
    """By the name of the job, which all ways of scraping give it."""
    looked_for = {job for _, _, expr in [*rules(), *panel_queries()] for job in re.findall(r'job="([^"]*)"', expr)}
    (labels,) = (
        entry["pairs"]
        for entry in documents(DEPLOY / "kubernetes" / "base" / "kustomization.yaml")[0]["labels"]
        if entry.get("includeSelectors")
    )
    assert looked_for == {labels[KINDS["PodMonitor"]["spec"]["jobLabel"]]}
    for name in ("prometheus.yml", "local.yml"):
        (config,) = documents(DEPLOY / "prometheus" / name)
        assert {job["job_name"] for job in config["scrape_configs"]} == looked_for


def test_limits_fit_each_other():
    (container,) = KINDS["Deployment"]["spec"]["template"]["spec"]["containers"]
    values = RESOURCES["kubernetes/base/configmap.yaml: ConfigMap"]["data"]
    limits = container["resources"]["limits"]
    assert int(values["MAX_RUNNING"]) < int(limits["cpu"])
    most = most_bytes(int(values["MAX_RUNNING"]), int(values["MAX_HOSTS"]), values["CHECK_MEMORY"])
    assert most < int(limits["memory"].removesuffix("Gi")) << 30
    volume = KINDS["PersistentVolumeClaim"]["spec"]["resources"]["requests"]["storage"]
    assert int(values["DISK_QUOTA"].removesuffix("GB")) * 10**9 < int(volume.removesuffix("Gi")) << 30


def offered(group):
    """Custom resources of a worker; quoted twice, since the operator hands them to a shell."""
    return json.loads(json.loads(group["rayStartParams"]["resources"]))


def pinned(package):
    """The version in the lock."""
    text = (ROOT / "requirements" / "ray.txt").read_text(encoding="utf-8")
    (version,) = re.findall(rf"^{package}==(\S+) ", text, re.MULTILINE)
    return version


@pytest.mark.parametrize("name", KUBERAY)
def test_ray_on_kubernetes(name):
    spec = KUBERAY[name]["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    assert cluster["rayVersion"] == pinned("ray")
    head = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert {port["name"]: port["containerPort"] for port in head["ports"]} == {
        "gcs": 6379,
        "dashboard": 8265,
        "client": 10001,
    }
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert offered(group) == {"duplex": 64}


def test_ray_job_runs_a_scenario_that_is_there(tmp_path):
    job = KINDS["RayJob"]["spec"]
    program, _, arguments = job["entrypoint"].partition(" ")
    assert program == "pimserve"
    given = parsed(arguments)
    head = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    mounts = {mount["name"]: Path(mount["mountPath"]) for mount in head["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in head["volumes"]}
    scenarios = RESOURCES["kuberay/rayjob.yaml: ConfigMap"]
    assert volumes["scenario"]["configMap"]["name"] == scenarios["metadata"]["name"]
    assert given["out"].parent == mounts["results"]
    assert given["scenario"].parent == mounts["scenario"]
    file = tmp_path / given["scenario"].name
    file.write_text(scenarios["data"][file.name], encoding="utf-8")
    scenario = load_scenario(file)
    prepare(scenario)
    groups = job["rayClusterSpec"]["workerGroupSpecs"]
    room = sum(offered(group)["duplex"] * group["replicas"] for group in groups)
    assert scenario.cluster.replicas * scenario.cluster.nodes * scenario.cluster.devices_per_node <= room


def test_ray_cluster_meets_the_schema_of_ray_up():
    ray = Path(importlib.util.find_spec("ray").origin).parent
    schema = json.loads((ray / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8"))
    (document,) = documents(DEPLOY / "ray" / "cluster.yaml")
    jsonschema.validate(document, schema)
    assert document["file_mounts"]["~/pimserve-setup"] == "build/ray-setup"
    used = set(re.findall(r"~/pimserve-setup/([\w.]+)", " ".join(document["setup_commands"])))
    assert used == {"ray.txt"}
    assert all((ROOT / "requirements" / name).exists() for name in used)
    for command in (document["head_start_ray_commands"][-1], document["worker_start_ray_commands"][-1]):
        assert command.startswith("RAY_AUTH_MODE=token ")
        assert "~/pimserve/bin/ray start" in command


def test_the_walk_through_names_what_is_there():
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    for path in re.findall(r"(?<![\w/])deploy/[\w./-]+\w", text):
        assert (ROOT / path).exists() or path.startswith("deploy/secrets"), path
    assert set(re.findall(r"pimserve(?:-ray)?:(\d+\.\d+\.\d+)", text)) == {__version__}
