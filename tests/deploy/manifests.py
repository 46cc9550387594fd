"""What the files in ``deploy/`` start: each process with its command line, settings and secrets."""

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
"""The UUID that stands for an instance of a unit; such a GPU is there with ``TRAINING_GPUS``."""


@dataclass(frozen=True)
class Process:
    """A process of ours.

    Attributes:
        where: The file and the name in it.
        argv: Behind ``training-worker``.
        env: What it says of the environment.
        secrets: File name in the folder of secrets, to the file below that of ``secrets.sh``.
        secrets_dir: Where they are.
        grace_s: How long it may take to end.
    """

    where: str
    argv: tuple[str, ...]
    env: dict[str, str]
    secrets: dict[str, str]
    secrets_dir: str
    grace_s: float

    @property
    def command(self) -> str:
        """The command of the command line."""
        return self.argv[0]

    def __str__(self) -> str:
        return self.where


def documents(path: Path) -> list[dict[str, Any]]:
    """A file's YAML documents; those of a list one by one."""
    found: list[dict[str, Any]] = []
    for document in yaml.safe_load_all(path.read_text("utf-8")):
        found += document["items"] if document["kind"] == "List" else [document]
    return found


def kubernetes_files() -> list[Path]:
    """The manifests, without what is kustomize's own."""
    own = {"kustomization.yaml", "fields.yaml", "tls"}
    return [it for it in sorted((DEPLOY / "k8s").rglob("*.yaml")) if not own & set(it.parts)]


def pod_of(document: dict[str, Any]) -> dict[str, Any] | None:
    """The template of a document's pods; None where it has none."""
    spec = document.get("spec", {})
    spec = spec.get("jobTargetRef", spec)
    return spec.get("template") if isinstance(spec, dict) else None


def compose() -> dict[str, Any]:
    """``compose.yaml`` as Compose reads it, but for variables."""
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
    return loaded


def processes() -> list[Process]:
    """All of them."""
    return [*_of_compose(), *_of_kubernetes(), *_of_systemd()]


def seconds(text: str) -> float:
    """A duration as Compose and systemd write it."""
    [(number, unit)] = re.findall(r"^(\d+)(s|m|min)$", text)
    return float(number) * (1 if unit == "s" else 60)


def _of_compose() -> Iterator[Process]:
    document = compose()
    for name, service in document["services"].items():
        if "build" not in service:
            continue
        secrets = {}
        for it in service["secrets"]:
            source, target = (it, it) if isinstance(it, str) else (it["source"], it["target"])
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
    """What a variable is where nobody sets it."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


def _of_kubernetes() -> Iterator[Process]:
    everything = [document for path in kubernetes_files() for document in documents(path)]
    maps = {it["metadata"]["name"]: it for it in everything if it["kind"] == "ConfigMap"}
    for document in everything:
        pod = pod_of(document)
        for container in pod["spec"]["containers"] if pod else ():
            if not container["image"].startswith("training-worker"):
                continue
            env: dict[str, str] = {}
            for source in container["envFrom"]:
                env |= maps[source["configMapRef"]["name"]]["data"]
            env |= {it["name"]: it["value"] for it in container.get("env", ())}
            assert pod is not None
            [volume] = [it for it in pod["spec"]["volumes"] if "secret" in it]
            role = volume["secret"]["secretName"].removeprefix("broker-")
            [mount] = [it for it in container["volumeMounts"] if it["name"] == volume["name"]]
            [secret] = [
                it
                for it in everything
                if it["kind"] == "Secret"
                and it["metadata"]["name"] == volume["secret"]["secretName"]
            ]
            yield Process(
                f"k8s {document['kind']} {document['metadata']['name']}",
                tuple(container["args"]),
                env,
                {key: f"{role}/{key}" for key in secret["stringData"]},
                mount["mountPath"],
                pod["spec"].get("terminationGracePeriodSeconds", 30),
            )


def unit(path: Path) -> dict[str, dict[str, list[str]]]:
    """A unit's sections, each key with its values."""
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
    """Keeps all values of a key that comes again, as units have them."""

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
