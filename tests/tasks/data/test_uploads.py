import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.data.listing import Listing
from tasks.data.read_policy import ReadPolicy
from tasks.data.sources import Sources
from tasks.data.uploads import StoredUploads
from tasks.errors import UsageError
from tasks.jobs.datasets import ArchiveDatasetConfig
from tasks.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store((tmp_path / "store").as_uri())


def listed(tmp_path: Path, uploads: StoredUploads | None, archive: str, **more: str) -> Listing:
    # No folder may be read: an upload is no file of this machine.
    sources = Sources(
        ReadPolicy(roots=()), tmp_path / "downloads", tmp_path / "scratch", uploads=uploads
    )
    return sources.listing(ArchiveDatasetConfig(archive=archive, **more))


def put(store: Store, tmp_path: Path) -> tuple[str, str]:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cat.png", b"an image")
        archive.writestr("cat.txt", b"a cat")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    upload_id = "0123456789abcdef" * 2
    StoredUploads(store, "acme").put(upload_id, "a.zip", path, digest)
    return f"upload:{upload_id}", digest


def test_an_upload_is_read_from_the_store(store: Store, tmp_path: Path) -> None:
    place, digest = put(store, tmp_path)
    found = listed(tmp_path, StoredUploads(store, "acme"), place, sha256=digest)
    assert [(it.name, it.caption) for it in found.items] == [("cat.png", "a cat")]
    assert found.problems == []


def test_an_upload_of_another_digest_is_refused(store: Store, tmp_path: Path) -> None:
    place, _ = put(store, tmp_path)
    [problem] = listed(tmp_path, StoredUploads(store, "acme"), place, sha256="0" * 64).problems
    assert "SHA-256" in problem.message


def test_an_upload_belongs_to_its_tenant_only(store: Store, tmp_path: Path) -> None:
    place, _ = put(store, tmp_path)
    for uploads in (StoredUploads(store, "zoo"), None):
        found = listed(tmp_path, uploads, place)
        assert found.items == []
        assert found.problems[0].location == place


@pytest.mark.parametrize(
    "name", ["..", "../../evil", "/evil", "a/b", "a\0b", "", "a..b", "x" * 3000, "a\n", "a\u202e"]
)
def test_a_name_that_leads_elsewhere_is_no_tenant_and_no_upload(
    store: Store, tmp_path: Path, name: str
) -> None:
    put(store, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="is not the name of a tenant"):
        StoredUploads(store, name)
    uploads = StoredUploads(store, "acme")
    uses: list[Callable[[], object]] = [
        lambda: uploads.get(name),
        lambda: uploads.put(name, "a.zip", tmp_path / "a.zip", "0" * 64),
        lambda: uploads.delete(name),
    ]
    for use in uses:
        with pytest.raises(UsageError, match="is not the id of an upload"):
            use()
    assert listed(tmp_path, uploads, f"upload:{name}").items == []
    assert sorted(tmp_path.rglob("*")) == before


def test_an_upload_of_a_remote_store_is_copied(tmp_path: Path) -> None:
    place, _ = put(Store((tmp_path / "store").as_uri()), tmp_path)

    class Elsewhere(Store):
        def local_path(self, key: str) -> Path | None:
            return None

    store = Elsewhere((tmp_path / "store").as_uri())
    assert len(listed(tmp_path, StoredUploads(store, "acme"), place).items) == 1
