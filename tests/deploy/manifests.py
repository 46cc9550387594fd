"""The processes that the files in ``deploy/`` start, with command line, settings and secrets."""

import configparser
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SYSTEMD = sorted((DEPLOY / "systemd").glob("*.service"))
GPU = "EMULATED-40gb-0"
"""The UUID that replaces ``%i`` in a unit. ``TRAINING_GPUS`` declares such a GPU."""


@dataclass(frozen=True)
class Process:
    """A process that a manifest starts.

    Attributes:
        where: The manifest's file and the name in it.
        argv: Arguments of ``training-worker``.
        env: Its environment variables.
        secrets: File name in the secrets folder, to the file below the folder of ``secrets.sh``.
        secrets_dir: The secrets folder.
        grace_s: Seconds until the supervisor kills it.
    """

    where: str
    argv: tuple[str, ...]
    env: dict[str, str]
    secrets: dict[str, str]
    secrets_dir: str
    grace_s: float

    @property
    def command(self) -> str:
        """The command, such as ``worker``."""
        return self.argv[0]

    def __str__(self) -> str:
        return self.where


def documents(path: Path) -> list[dict[str, Any]]:
    """Return a file's YAML documents, with lists expanded."""
    result: list[dict[str, Any]] = []
    for document in yaml.safe_load_all(path.read_text("utf-8")):
        result += document["items"] if document["kind"] == "List" else [document]
    return result


def kubernetes_files() -> list[Path]:
    """Return the manifests, without the files of kustomize."""
    excluded = {"kustomization.yaml", "fields.yaml", "tls", "consoles"}
    paths = sorted((DEPLOY / "k8s").rglob("*.yaml"))
    return [path for path in paths if not excluded & set(path.parts)]


def pod_of(document: dict[str, Any]) -> dict[str, Any] | None:
    """Return the template of a document's pods, or None."""
    spec = document.get("spec", {})
    spec = spec.get("jobTargetRef", spec)
    return spec.get("template") if isinstance(spec, dict) else None


def compose() -> dict[str, Any]:
    """Return ``compose.yaml`` without substituted variables."""
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
    return loaded


def processes() -> list[Process]:
    """Return the processes of all manifests."""
    return [*_of_compose(), *_of_kubernetes(), *_of_systemd()]


def seconds(text: str) -> float:
    """Parse a duration of Compose or systemd."""
    [(number, unit)] = re.findall(r"^(\d+)(s|m|min)$", text)
    return float(number) * (1 if unit == "s" else 60)


def _of_compose() -> Iterator[Process]:
    document = compose()
    for name, service in document["services"].items():
        if "build" not in service:
            continue
        secrets = {}
        for secret in service["secrets"]:
            whole = {"source": secret, "target": secret} if isinstance(secret, str) else secret
            source, target = whole["source"], whole["target"]
            secrets[target] = document["secrets"][source]["file"].removeprefix("./secrets/")
        env = {k: _default(v) for k, v in service["environment"].items() if v is not None}
        grace_s = seconds(service.get("stop_grace_period", "10s"))
        yield Process(
            f"compose.yaml {name}",
            tuple(service["command"]),
            env,
            secrets,
            "/run/secrets",
            grace_s,
        )


def _default(value: str) -> str:
    """Return a variable's default."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


def _of_kubernetes() -> Iterator[Process]:
    everything = [document for path in kubernetes_files() for document in documents(path)]
    maps = {doc["metadata"]["name"]: doc for doc in everything if doc["kind"] == "ConfigMap"}
    for document in everything:
        pod = pod_of(document)
        for container in pod["spec"]["containers"] if pod else ():
            if not container["image"].startswith("training-worker"):
                continue
            env: dict[str, str] = {}
            for source in container["envFrom"]:
                env |= maps[source["configMapRef"]["name"]]["data"]
            env |= {entry["name"]: entry["value"] for entry in container.get("env", ())}
            assert pod is not None
            [volume] = [each for each in pod["spec"]["volumes"] if each["name"] == "secrets"]
            name = secret_of(volume)
            role = name.removeprefix("broker-")
            [mount] = [each for each in container["volumeMounts"] if each["name"] == volume["name"]]
            [secret] = [
                each
                for each in everything
                if each["kind"] == "Secret" and each["metadata"]["name"] == name
            ]
            yield Process(
                f"k8s {document['kind']} {document['metadata']['name']}",
                tuple(container["args"]),
                env,
                {key: f"{role}/{key}" for key in secret["stringData"]},
                mount["mountPath"],
                pod["spec"].get("terminationGracePeriodSeconds", 30),
            )


def secret_of(volume: dict[str, Any]) -> str:
    """Return the name of the Secret of a volume, or of the first one that it projects."""
    if "projected" in volume:
        return str(volume["projected"]["sources"][0]["secret"]["name"])
    return str(volume["secret"]["secretName"])


def unit(path: Path) -> dict[str, dict[str, list[str]]]:
    """Return a unit's sections: the values of each key."""
    parser = configparser.RawConfigParser(
        strict=False, interpolation=None, dict_type=_Repeated, comment_prefixes=("#",)
    )
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(path.read_text("utf-8"))
    return {
        section: {key: value.split("\n") for key, value in parser.items(section)}
        for section in parser.sections()
    }


class _Repeated(dict[str, Any]):
    """Keeps all values of a repeated key, as systemd does."""

    def __setitem__(self, key: str, value: Any) -> None:
        if isinstance(value, list) and key in self:
            self[key].extend(value)
        else:
            super().__setitem__(key, value)


def _of_systemd() -> Iterator[Process]:
    for path in SYSTEMD:
        service = unit(path)["Service"]
        env: dict[str, str] = {}
        secrets: dict[str, str] = {}
        for line in service["Environment"]:
            env |= dict(word.split("=", 1) for word in line.split())
        for line in service["LoadCredential"]:
            name, file = line.split(":")
            secrets[name] = file.removeprefix("/etc/training-worker/")
        [command] = service["ExecStart"]
        program, *argv = command.replace("%i", GPU).split()
        assert program == "/opt/training-worker/.venv/bin/training-worker"
        [grace] = service["TimeoutStopSec"]
        yield Process(path.name, tuple(argv), env, secrets, "%d", seconds(grace))
