"""A tenant's job reads the tenant's own secrets and nothing else."""

import logging
import os
from pathlib import Path

import pytest

from tasks.access.tenant_secrets import SecretError, TenantSecrets
from tasks.settings.settings import load_settings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for tenant in ("acme", "zoo"):
        own = tmp_path / "tenants" / tenant
        own.mkdir(parents=True)
        (own / "hub").write_text(f"token of {tenant}\n")
        (own / "hub").chmod(0o600)
    (tmp_path / "TRAINING_BROKER_URL").write_text("redis://:password@broker")
    return tmp_path


def test_each_tenant_has_its_own(folder: Path) -> None:
    secrets = TenantSecrets(folder)
    assert secrets.read("acme", "hub") == "token of acme"
    assert secrets.read("zoo", "hub") == "token of zoo"


@pytest.mark.parametrize(
    ("tenant", "name"),
    [
        ("acme", "../zoo/hub"),
        ("acme", "../../TRAINING_BROKER_URL"),
        ("..", "TRAINING_BROKER_URL"),
        (".", "hub"),
        ("acme", ""),
        ("acme", "/etc/passwd"),
        ("acme", "missing"),
        ("nobody", "hub"),
        ("acme", "folder"),
        ("acme", "pipe"),
        ("acme", "large"),
        ("acme", "empty"),
        ("acme", "binary"),
        ("acme", "out"),
        ("acme", "to-zoo"),
        ("acme", "loop"),
        ("linked", "hub"),
    ],
)
def test_nothing_else_is_read(folder: Path, tenant: str, name: str) -> None:
    own = folder / "tenants" / "acme"
    (own / "folder").mkdir()
    os.mkfifo(own / "pipe")
    (own / "large").write_bytes(b"x" * 100_000)
    (own / "empty").write_text(" \n")
    (own / "binary").write_bytes(b"\xff\xfe")
    (own / "out").symlink_to(folder / "TRAINING_BROKER_URL")
    (own / "loop").symlink_to("loop")
    (own / "to-zoo").symlink_to(Path("..") / "zoo" / "hub")
    (folder / "tenants" / "linked").symlink_to("zoo")
    with pytest.raises(SecretError) as caught:
        TenantSecrets(folder).read(tenant, name)
    assert "password" not in str(caught.value)
    assert "token of" not in str(caught.value)


def test_links_as_kubernetes_makes_them_are_followed(folder: Path) -> None:
    own = folder / "tenants" / "acme"
    (own / "..2026").mkdir()
    (own / "..2026" / "mounted").write_text("mounted token")
    (own / "..data").symlink_to("..2026")
    (own / "mounted").symlink_to(Path("..data") / "mounted")
    assert TenantSecrets(folder).read("acme", "mounted") == "mounted token"


def test_a_file_that_others_may_read_is_warned_of(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "tenants" / "acme" / "hub").chmod(0o644)
    with caplog.at_level(logging.WARNING):
        TenantSecrets(folder).read("acme", "hub")
    assert "chmod 600" in caplog.text
    assert "token of" not in caplog.text


def test_without_a_folder_there_are_no_secrets() -> None:
    with pytest.raises(SecretError, match="has no TRAINING_SECRETS_DIR"):
        TenantSecrets().read("acme", "hub")


def test_the_tenants_folder_is_no_setting(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINING_SECRETS_DIR", str(folder))
    url = load_settings().broker_url
    assert url is not None
    assert "password" in url.get_secret_value()
