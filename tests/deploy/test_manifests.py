"""The manifests are valid for Compose, Kubernetes, KEDA, systemd and Docker."""

import copy
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from console.login import COOKIE
from routing.classes import MemoryClass
from routing.queues import ALL_QUEUES, CPU_QUEUE, INVOKE, SUBMIT_QUEUE, gpu_queue
from tasks.access.tenant_secrets import TENANTS_FOLDER
from tasks.hosts import is_allowed_host
from tasks.settings.settings import Settings
from tests.deploy.manifests import (
    DEPLOY,
    ROOT,
    SYSTEMD,
    compose,
    documents,
    kubernetes_files,
    pod_of,
    secret_of,
    unit,
)

MANIFESTS = [(path, document) for path in kubernetes_files() for document in documents(path)]
PODS = [(path, document) for path, document in MANIFESTS if pod_of(document)]
DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8")


def name_of(value: Any) -> str:
    if isinstance(value, Path):
        return str(value.relative_to(DEPLOY))
    return f"{value['kind']}-{value['metadata']['name']}" if isinstance(value, dict) else ""


def test_compose_files_follow_the_compose_specification() -> None:
    checker = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    files = [str(DEPLOY / name) for name in ("compose.yaml", "compose.tls.yaml")]
    done = subprocess.run([*checker, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["compose.yaml", "compose.tls.yaml"])
def test_compose_references_exist(name: str) -> None:
    document = yaml.safe_load((DEPLOY / name).read_text("utf-8"))
    for service in document["services"].values():
        for secret in service.get("secrets", ()):
            assert (secret if isinstance(secret, str) else secret["source"]) in document["secrets"]
    if name == "compose.tls.yaml":
        assert document["services"].keys() <= compose()["services"].keys()
        base = compose()["services"]["valkey"]["command"]
        assert document["services"]["valkey"]["command"][: len(base)] == base


def test_compose_uses_the_files_of_prometheus_and_grafana() -> None:
    services, config = compose()["services"], DEPLOY / "prometheus" / "prometheus.yml"
    for name in ("prometheus", "grafana"):
        for mount in services[name]["volumes"]:
            source = mount.partition(":")[0]
            if source.startswith("./") and (DEPLOY / name).exists():
                assert (DEPLOY / source).is_dir(), source
    if config.exists():
        host = yaml.safe_load(config.read_text("utf-8"))
        composed = yaml.safe_load(compose()["configs"]["prometheus.yml"]["content"])
        assert composed["rule_files"] == host["rule_files"]
        assert [job["job_name"] for job in composed["scrape_configs"]] == [
            job["job_name"] for job in host["scrape_configs"]
        ]


def test_scraped_names_are_allowed_hosts() -> None:
    composed = yaml.safe_load(compose()["configs"]["prometheus.yml"]["content"])
    jobs = {
        job["job_name"]: job["static_configs"][0]["targets"] for job in composed["scrape_configs"]
    }
    for name, service in (("training", "metrics"), ("flower", "flower")):
        text = compose()["services"][service]["environment"]["TRAINING_ALLOWED_HOSTS"]
        allowed = Settings(allowed_hosts=text.partition(":-")[2].rstrip("}")).host_names
        assert is_allowed_host(jobs[name][0], allowed)
    [settings] = [it["data"] for _, it in MANIFESTS if it["metadata"]["name"] == "settings"]
    allowed = Settings(allowed_hosts=settings["TRAINING_ALLOWED_HOSTS"]).host_names
    guide = (ROOT / "docs" / "guides" / "kubernetes.md").read_text("utf-8")
    targets = re.findall(r'targets: \["([^"]+)"\]', guide)
    assert targets
    assert all(is_allowed_host(target, allowed) for target in targets)


def test_compose_has_a_closed_service_for_each_gpu_class() -> None:
    services = compose()["services"]
    assert {name for name in services if name.startswith("gpu-")} == {
        f"gpu-{memory_class}" for memory_class in MemoryClass
    }
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert not any(str(port)[:3] not in ("127",) for port in service.get("ports", ())), name
        assert re.search(r":v?\d", service["image"]), name
        assert service["mem_limit"], name
        assert service["pids_limit"], name
        assert starts_no_python(service.get("healthcheck", {}).get("test", ()))


def test_compose_keeps_the_data_of_each_role_apart() -> None:
    """Flower and metrics reach no job's data, no key and no upload, also if they are taken over."""
    volumes = {
        name: {mount.partition(":")[0] for mount in service.get("volumes", ())}
        for name, service in compose()["services"].items()
    }
    assert volumes["flower"] == {"flower"}
    assert volumes["metrics"] == set()
    for name, mounted in volumes.items():
        assert name == "console" or "console" not in mounted
        assert name == "valkey" or "broker" not in mounted
    for name in ("flower", "metrics"):
        environment = compose()["services"][name]["environment"]
        assert not [each for each in environment if each.startswith(("AWS_", "HF_"))]


def starts_no_python(command: Sequence[str]) -> bool:
    return not re.search(r"python|training-worker", " ".join(command))


@pytest.mark.parametrize("where", ["compose.yaml", "compose.tls.yaml", "k8s"])
def test_the_broker_refuses_writes_before_its_container_is_killed(where: str) -> None:
    if where == "k8s":
        [pod] = [doc for path, doc in PODS if path.name == "valkey.yaml"]
        [container] = pod["spec"]["template"]["spec"]["containers"]
        command, limit = container["args"], container["resources"]["limits"]["memory"]
    else:
        services = yaml.safe_load((DEPLOY / where).read_text("utf-8"))["services"]
        command, limit = services["valkey"]["command"], compose()["services"]["valkey"]["mem_limit"]
    options = dict(word.removeprefix("--").split(" ", 1) for word in command[1:])
    assert options["maxmemory-policy"] == "noeviction"
    assert 0 < size(options["maxmemory"]) <= 0.65 * size(limit)


def size(text: str) -> int:
    """Parse a size of valkey, Compose or Kubernetes; all count in powers of 1024."""
    number, unit = re.fullmatch(r"(\d+)([mg])(?:b|i)?", text.lower()).groups()  # type: ignore[union-attr]
    return int(number) * 1024 ** (2 if unit == "m" else 3)


def test_names_resolve_behind_every_usual_dns() -> None:
    [policy] = [doc for _, doc in MANIFESTS if doc["metadata"]["name"] == "names"]
    rules = [
        (str(target), {port["port"] for port in rule["ports"]})
        for rule in policy["spec"]["egress"]
        for target in rule["to"]
    ]
    for target, port in (("kube-system", 53), ("169.254.20.10/32", 53), ("openshift-dns", 5353)):
        assert any(target in each and port in ports for each, ports in rules)


@pytest.mark.parametrize(("path", "document"), MANIFESTS, ids=name_of)
def test_manifest_follows_its_schema(path: Path, document: dict[str, Any]) -> None:
    if document["apiVersion"].startswith("monitoring.coreos.com"):
        return  # Their fields are tested with the rules of Prometheus.
    if document["kind"] in ("ScaledJob", "ScaledObject"):
        schema = json.loads((Path(__file__).parent / "keda.schema.json").read_text("utf-8"))
        jsonschema.validate(document, schema)
        if document["kind"] == "ScaledObject":
            return
        document = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": document["metadata"],
            "spec": document["spec"]["jobTargetRef"],
        }
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize(("path", "document"), PODS, ids=name_of)
def test_pod_is_closed_and_its_references_exist(path: Path, document: dict[str, Any]) -> None:
    pod = pod_of(document)
    assert pod is not None
    spec = pod["spec"]
    existing = {(doc["kind"], doc["metadata"]["name"]) for _, doc in MANIFESTS}
    assert spec["enableServiceLinks"] is False
    if document["metadata"]["name"] in ("flower", "metrics"):
        assert spec["serviceAccountName"] == "training-observer"
    if "serviceAccountName" in spec:
        assert ("ServiceAccount", spec["serviceAccountName"]) in existing
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert ("PriorityClass", spec["priorityClassName"]) in existing
    templates = document["spec"].get("volumeClaimTemplates", ())
    claims = [template["metadata"] for template in templates]
    volumes = {volume["name"] for volume in [*spec["volumes"], *claims]}
    for volume in spec["volumes"]:
        if volume.keys() & {"secret", "projected"}:
            assert ("Secret", secret_of(volume)) in existing
        if "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]["claimName"]
            assert ("PersistentVolumeClaim", claim) in existing
    for container in spec["containers"]:
        closed = container["securityContext"]
        assert closed["readOnlyRootFilesystem"]
        assert not closed["allowPrivilegeEscalation"]
        assert closed["capabilities"] == {"drop": ["ALL"]}
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert "memory" in container["resources"]["limits"]
        for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
            assert starts_no_python(container.get(probe, {}).get("exec", {}).get("command", ()))


@pytest.mark.parametrize("folder", ["gpu", "keda"])
def test_gpu_workers_select_nodes_of_their_class(folder: str) -> None:
    selected = {}
    for document in documents(DEPLOY / "k8s" / folder / "workers.yaml"):
        if (pod := pod_of(document)) is not None:
            required = pod["spec"]["affinity"]["nodeAffinity"]
            [term] = required["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
            bounds = {rule["operator"]: int(rule["values"][0]) for rule in term["matchExpressions"]}
            selected[document["metadata"]["name"]] = bounds
    floors = [memory_class.floor_mib for memory_class in MemoryClass]
    expected: dict[str, dict[str, int]] = {
        f"gpu-{memory_class}": {"Gt": memory_class.floor_mib - 1} for memory_class in MemoryClass
    }
    for bounds, above in zip(expected.values(), floors[1:], strict=False):
        bounds["Lt"] = above
    assert selected == expected


def test_keda_counts_the_work_of_its_workers_queue() -> None:
    for document in documents(DEPLOY / "k8s" / "keda" / "workers.yaml"):
        queue = document["metadata"]["name"].replace("gpu-", "gpu.")
        [trigger] = document["spec"]["triggers"]
        query = trigger["metadata"]["query"]
        assert query == f'sum(training_workers_wanted{{queue="{queue}"}}) or vector(0)'
        [container] = document["spec"]["jobTargetRef"]["template"]["spec"]["containers"]
        assert {"--strict", "--exit-when-idle"} <= set(container["args"])


def test_keda_counts_the_work_of_the_extra_engine_too() -> None:
    component = yaml.safe_load((DEPLOY / "k8s/keda/invoke/kustomization.yaml").read_text("utf-8"))
    scaled = {it["metadata"]["name"]: it for it in documents(DEPLOY / "k8s/keda/workers.yaml")}
    counted: dict[str, set[str]] = {}
    for patch in component["patches"]:
        [change] = yaml.safe_load(patch["patch"])
        assert change["op"] == "replace"
        assert change["path"] == "/spec/triggers/0/metadata/query"
        assert "query" in scaled[patch["target"]["name"]]["spec"]["triggers"][0]["metadata"]
        query = r'sum\(training_workers_wanted\{queue=~"([^"]+)"\}\) or vector\(0\)'
        match = re.fullmatch(query, change["value"])
        assert match is not None
        matched = {queue for queue in ALL_QUEUES if re.fullmatch(match[1], queue)}
        counted[patch["target"]["name"]] = matched
    assert counted == {f"gpu-{it}": {gpu_queue(it), gpu_queue(it, INVOKE)} for it in MemoryClass}
    [image] = component["images"]
    [container] = scaled["gpu-40gb"]["spec"]["jobTargetRef"]["template"]["spec"]["containers"]
    assert image["name"] == container["image"]


def test_keda_scales_the_cpu_workers_with_both_of_their_queues() -> None:
    [scaled] = documents(DEPLOY / "k8s" / "keda" / "cpu.yaml")
    [trigger] = scaled["spec"]["triggers"]
    target = scaled["spec"]["scaleTargetRef"]["name"]
    assert any(
        document["kind"] == "Deployment" and document["metadata"]["name"] == target
        for _, document in MANIFESTS
    )
    for queue in (CPU_QUEUE, SUBMIT_QUEUE):
        assert f'training_queue_jobs{{queue="{queue}"}}' in trigger["metadata"]["query"]


def test_kustomization_references_exist() -> None:
    files = sorted((DEPLOY / "k8s").rglob("kustomization.yaml"))
    named = set()
    for path in files:
        content = yaml.safe_load(path.read_text("utf-8"))
        patches = [patch["path"] for patch in content.get("patches", ()) if "path" in patch]
        others = [*content.get("configurations", ()), *patches]
        for name in [*content.get("resources", ()), *others]:
            target = (path.parent / name).resolve()
            assert target.is_file() or (target / "kustomization.yaml").is_file(), name
            named.add(target)
    assert set(kubernetes_files()) - {DEPLOY / "k8s" / "secrets.example.yaml"} <= named


def test_tls_component_patches_the_broker() -> None:
    documents_ = documents(DEPLOY / "k8s" / "base" / "valkey.yaml")
    [stateful] = [doc for doc in documents_ if doc["kind"] == "StatefulSet"]
    for patch in yaml.safe_load((DEPLOY / "k8s" / "tls" / "valkey.yaml").read_text("utf-8")):
        *path, last = patch["path"].strip("/").split("/")
        place = stateful
        for step in path:
            place = place[int(step) if isinstance(place, list) else step]
        assert isinstance(place, list)
        if patch["op"] == "add":
            assert last == "-"
            place.append(patch["value"])
        else:
            place[int(last)] = patch["value"]
    kubernetes_validate.validate(stateful, kubernetes_validate.latest_version(), strict=True)
    valkey = yaml.safe_load((DEPLOY / "compose.tls.yaml").read_text("utf-8"))["services"]["valkey"]
    [container] = stateful["spec"]["template"]["spec"]["containers"]
    options = [argument.split()[0] for argument in container["args"]]
    assert options == [argument.split()[0] for argument in valkey["command"]]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("folder", ["gpu", "keda"])
def test_kustomize_builds(folder: str) -> None:
    command = ["kubectl", "kustomize", str(DEPLOY / "k8s" / folder)]
    built = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    images = set(re.findall(r"image: (.+)", built))
    assert not any(image.startswith("training-worker") for image in images)


@pytest.mark.parametrize("path", SYSTEMD, ids=lambda path: path.name)
def test_unit_is_complete_and_closed(path: Path) -> None:
    sections = unit(path)
    assert list(sections) == ["Unit", "Service", "Install"]
    service = sections["Service"]
    assert service["KillMode"] == ["mixed"]
    assert service["NoNewPrivileges"] == ["true"]
    assert service["ProtectSystem"] == ["strict"]
    assert service["CapabilityBoundingSet"] == [""]
    assert service["Restart"] == ["on-failure"]
    # A GPU's worker needs what its models need.
    assert "MemoryMax" in service or path.name == "training-worker@.service"
    assert sections["Install"]["WantedBy"] == ["training-worker.target"]
    assert sections["Unit"]["PartOf"] == ["training-worker.target"]
    document = sections["Unit"]["Documentation"][0].removeprefix("file:///opt/training-worker/")
    assert (ROOT / document).is_file()


@pytest.mark.parametrize("role", ["flower", "metrics"])
def test_units_that_only_watch_reach_no_data(role: str) -> None:
    service = unit(DEPLOY / "systemd" / f"training-worker-{role}.service")["Service"]
    assert service["InaccessiblePaths"] == ["-/var/lib/training-worker"]
    assert service["StateDirectory"] == [f"training-worker-{role}"]
    assert f"TRAINING_HOME=/var/lib/training-worker-{role}" in service["Environment"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    program = tmp_path / "training-worker"
    program.symlink_to("/bin/true")
    for path in (DEPLOY / "systemd").glob("training-worker*"):
        text = path.read_text("utf-8")
        (tmp_path / path.name).write_text(
            text.replace("/opt/training-worker/.venv/bin/training-worker", str(program)), "utf-8"
        )
    units = [str(path) for path in sorted(tmp_path.glob("training-worker?*.*")) if path.suffix]
    command = ["systemd-analyze", "verify", "--man=no", *units]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_dockerfile_copies_existing_files() -> None:
    stages: set[str] = set()
    allowed = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    text = DOCKERFILE.replace("\\\n", " ")
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            source, name = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()  # type: ignore[union-attr]
            assert source in {"${PYTHON}", *stages}
            stages.add(name)
        elif word == "COPY" and "--from=" in rest:
            assert re.search(r"--from=(\S+)", rest).group(1) in stages  # type: ignore[union-attr]
        elif word == "COPY":
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in allowed, source
    services = compose()["services"].values()
    targets = {service["build"]["target"] for service in services if "build" in service}
    assert targets <= stages
    assert re.search(r"^ARG PYTHON=python:\d+\.\d+\.\d+-", DOCKERFILE, re.MULTILINE)
    assert "USER 10001:10001" in DOCKERFILE


def test_consoles_component_patches_the_console() -> None:
    folder = DEPLOY / "k8s" / "consoles"
    content = yaml.safe_load((folder / "kustomization.yaml").read_text("utf-8"))
    by_kind = {doc["kind"]: doc for doc in documents(DEPLOY / "k8s" / "base" / "console.yaml")}
    for entry in content["patches"]:
        document = by_kind[entry["target"]["kind"]]
        assert document["metadata"]["name"] == entry["target"]["name"]
        for patch in yaml.safe_load((folder / entry["path"]).read_text("utf-8")):
            apply(document, patch)
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    assert by_kind["Service"]["spec"]["sessionAffinity"] == "ClientIP"
    assert by_kind["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteMany"]
    assert by_kind["Deployment"]["spec"]["replicas"] == 2


@pytest.mark.parametrize("file", ["base/cpu.yaml", "gpu/workers.yaml", "keda/workers.yaml"])
def test_tenants_component_adds_their_secrets_to_workers(file: str) -> None:
    component = DEPLOY / "k8s" / "tenants" / "kustomization.yaml"
    content = yaml.safe_load(component.read_text("utf-8"))
    for shared in documents(DEPLOY / "k8s" / file):
        document, pod = copy.deepcopy(shared), pod_of(shared)
        if pod is None:
            continue
        for entry in content["patches"]:
            target = entry["target"]
            names = re.compile(target.get("name", ".*"))
            if target["kind"] == document["kind"] and names.fullmatch(document["metadata"]["name"]):
                for patch in yaml.safe_load(entry["patch"]):
                    apply(document, patch)
        changed = pod_of(document)
        assert changed is not None
        [volume] = [it for it in changed["spec"]["volumes"] if it["name"] == "secrets"]
        broker, tenant = volume["projected"]["sources"]
        assert broker["secret"]["name"] == "broker-worker"
        assert tenant["secret"]["items"][0]["path"].startswith(f"{TENANTS_FOLDER}/acme/")
        if document["kind"] == "Deployment":
            latest = kubernetes_validate.latest_version()
            kubernetes_validate.validate(document, latest, strict=True)


def test_workers_of_compose_have_tenants_secrets_and_trackers() -> None:
    services = compose()["services"]
    for name, service in services.items():
        mount = f"./secrets/tenants:/run/secrets/{TENANTS_FOLDER}:ro"
        has_secrets = mount in service.get("volumes", ())
        assert has_secrets == (name.startswith("gpu-") or name == "cpu"), name
    assert ",wandb,mlflow," in DOCKERFILE


def test_secrets_script_leaves_tenants_secrets_as_they_are(tmp_path: Path) -> None:
    script = ["bash", str(DEPLOY / "secrets.sh"), str(tmp_path)]
    subprocess.run(script, check=True)
    secret = tmp_path / TENANTS_FOLDER / "acme" / "hub"
    secret.parent.mkdir()
    secret.touch(0o600)
    subprocess.run(script, check=True)
    assert secret.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "worker" / "TRAINING_BROKER_URL").stat().st_mode & 0o777 == 0o444


def apply(document: dict[str, Any], patch: dict[str, Any]) -> None:
    """Apply an operation of a JSON patch."""
    *path, last = patch["path"].strip("/").split("/")
    place: Any = document
    for step in path:
        place = place[int(step) if isinstance(place, list) else step]
    if isinstance(place, list):
        assert last == "-"
        place.append(patch["value"])
    else:
        assert patch["op"] == "add" or last in place
        place[last] = patch["value"]


def test_proxy_of_the_guide_keeps_browsers_and_logs_no_queries() -> None:
    page = (DEPLOY.parent / "docs" / "guides" / "consoles.md").read_text("utf-8")
    [config] = re.findall(r"```nginx\n(.*?)```", page, re.DOTALL)
    config = re.sub(r"#.*", "", config)
    assert config.count("{") == config.count("}")
    directives = {
        line.strip().rstrip(";") for line in config.splitlines() if line.strip().endswith(";")
    }
    assert f"map $cookie_{COOKIE} $training_console {{" in config
    assert {
        "hash $training_console consistent",
        "proxy_buffering off",
        "proxy_request_buffering off",
        "client_max_body_size 0",
        "proxy_set_header Host $host",
        "proxy_set_header Upgrade $http_upgrade",
        "proxy_set_header Connection $training_connection",
    } <= directives
    [logged] = re.findall(r"log_format training '(.*)';", config)
    variables = set(re.findall(r"\$\w+", logged))
    assert not variables & {"$request", "$request_uri", "$args", "$query_string", "$http_referer"}
