"""The same images and captions, wherever they come from, are the same dataset."""

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from pydantic import TypeAdapter

from tasks.data import sources as sources_module
from tasks.data.download import downloads
from tasks.data.hub import HubRows, fetch_hub
from tasks.data.read_policy import ReadPolicy
from tasks.data.sources import Sources
from tasks.data.validation import Report, check_dataset
from tasks.dataset import dataset_of
from tasks.jobs.datasets import (
    ImageCaptionDatasetConfig,
    ImageCaptionDirDatasetConfig,
    ImageCaptionJsonlDatasetConfig,
)
from tasks.jobs.job import parse_job
from tasks.urls import redact_urls
from tests.tasks.data.hub_site import Hub
from tests.tasks.data.site import Served, Site
from tests.tasks.jobs.test_flux_lora import with_values

CAPTIONS = {"a.png": "a red field", "b.jpg": "a green field", "sub/c.webp": "a blue field"}
ROWS = "\n".join(json.dumps({"image": name, "text": text}) for name, text in CAPTIONS.items())


def image(name: str) -> bytes:
    image = Image.linear_gradient("L").convert("RGB").resize((512, 512))
    kind = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[name.rpartition(".")[2]]
    for _ in range(list(CAPTIONS).index(name)):
        image = image.transpose(Image.Transpose.ROTATE_90)
    file = io.BytesIO()
    image.save(file, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return file.getvalue()


IMAGES = {name: image(name) for name in CAPTIONS}


def files(*, captions: bool) -> dict[str, bytes]:
    """A dataset's files: with captions beside the images, or in a JSONL file."""
    if not captions:
        return {**IMAGES, "rows.jsonl": ROWS.encode()}
    beside = {name.rpartition(".")[0] + ".txt": text.encode() for name, text in CAPTIONS.items()}
    return {**IMAGES, **beside}


def zipped(found: dict[str, bytes], top: str = "") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in found.items():
            archive.writestr(top + name, data)
    return file.getvalue()


def tarred(found: dict[str, bytes], mode: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in found.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


@pytest.fixture
def check(tmp_path: Path, bucket: Site) -> Callable[..., Report]:
    """What is found in a dataset, each time by new ``Sources`` over the same downloads."""
    folders = (tmp_path / f"scratch-{number}" for number in range(99))

    def check(roots: tuple[str, ...] | None = None, **dataset: Any) -> Report:
        access = ReadPolicy(roots=roots, hosts=frozenset({bucket.host}))
        sources = Sources(access, tmp_path / "downloads", next(folders))
        job = parse_job(with_values(data_loader__dataset=dataset))
        return check_dataset(job.training, sources, limits=lambda _: [])

    return check


@pytest.fixture
def digest(tmp_path: Path, check: Callable[..., Report]) -> str:
    """The dataset's digest, from a folder."""
    folder = tmp_path / "folder"
    for name, data in files(captions=True).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "rows.jsonl").write_text(ROWS, "utf-8")
    report = check(type="IMAGE_CAPTION_JSONL_DATASET", jsonl_path=str(folder / "rows.jsonl"))
    assert report.problems == []
    assert len(report.samples) == 3
    return dataset_of(report.samples).digest


@pytest.mark.parametrize(
    ("name", "data", "options"),
    [
        ("set.zip", zipped(files(captions=True)), {}),
        ("set.tar", tarred(files(captions=True), "w"), {}),
        ("set.tar.gz", tarred(files(captions=True), "w:gz"), {}),
        ("named otherwise", zipped(files(captions=True), "top folder/"), {}),
        ("rows.zip", zipped(files(captions=False)), {"jsonl": "rows.jsonl"}),
        ("below.zip", zipped(files(captions=False), "x/"), {"jsonl": "x/rows.jsonl"}),
    ],
)
@pytest.mark.parametrize("place", ["file", "web", "s3"])
def test_an_archive_is_its_images(
    tmp_path: Path,
    site: Site,
    check: Callable[..., Report],
    digest: str,
    name: str,
    data: bytes,
    options: dict[str, str],
    place: str,
) -> None:
    (tmp_path / name).write_bytes(data)
    site.files[f"/bucket/{name}".replace(" ", "%20")] = Served(data)
    archive = {
        "file": str(tmp_path / name),
        "web": site.url(f"/bucket/{name}".replace(" ", "%20")),
        "s3": f"s3://bucket/{name}",
    }[place]
    report = check(type="ARCHIVE", archive=archive, **options)
    assert report.problems == []
    assert dataset_of(report.samples).digest == digest


def test_a_folder_in_a_bucket_is_its_images(
    site: Site, check: Callable[..., Report], digest: str
) -> None:
    for name, data in files(captions=True).items():
        site.files[f"/bucket/some/{name}"] = Served(data)
    found = {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "s3://bucket/some/"}
    assert dataset_of(check(**found).samples).digest == digest
    sent = sum(asked.sent for asked in site.asked)
    again = check(**found)
    assert dataset_of(again.samples).digest == digest
    # Asked for once more, and not sent once more.
    assert sum(asked.sent for asked in site.asked) - sent < sum(map(len, IMAGES.values()))
    denied = check(roots=("s3://bucket/other",), **found)
    assert "TRAINING_DATA_ROOTS" in str(denied.problems[0])


def test_a_folder_over_the_maximum_is_a_problem(tmp_path: Path, bucket: Site, digest: str) -> None:
    for name, data in files(captions=True).items():
        bucket.files[f"/bucket/some/{name}"] = Served(data)
    most = max(map(len, IMAGES.values())) + 1000
    sources = Sources(ReadPolicy(max_bytes=most), tmp_path / "kept", tmp_path / "scratch")
    dataset = {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "s3://bucket/some"}
    config = parse_job(with_values(data_loader__dataset=dataset)).training
    [problem] = check_dataset(config, sources, limits=lambda _: []).problems
    assert str(problem) == f"s3://bucket/some: is larger than {most:,} bytes, the maximum"


@pytest.mark.parametrize(
    ("served", "listed"), [(None, 100), (Served(status=503), 10)], ids=["missing", "interrupted"]
)
def test_many_failed_downloads_end_the_listing(
    site: Site,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    served: Served | None,
    listed: int,
) -> None:
    monkeypatch.setattr(downloads, "PAUSES_S", ())
    names = [f"{number}.png" for number in range(1000)]
    rows = "\n".join(json.dumps({"image": name, "text": "a"}) for name in names)
    site.files["/rows.jsonl"] = Served(rows.encode())
    if served is not None:
        site.files |= {f"/{name}": served for name in names}
    policy = ReadPolicy(hosts=frozenset({site.host}))
    sources = Sources(policy, tmp_path / "kept", tmp_path / "scratch")
    config = ImageCaptionJsonlDatasetConfig(jsonl_path=site.url("/rows.jsonl"))
    *failed, last = sources.listing(config).problems[: listed + 1]
    assert {problem.retryable for problem in (*failed, last)} == {served is not None}
    assert "too many downloads failed" in last.message
    assert len(site.asked) <= listed + 20


def test_a_server_that_delays_each_file_ends_the_listing(
    bucket: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, data in files(captions=True).items():
        bucket.files[f"/bucket/some/{name}"] = Served(data)
    config = ImageCaptionDirDatasetConfig(dataset_dir="s3://bucket/some")
    sources = Sources(ReadPolicy(), tmp_path / "kept", tmp_path / "scratch")
    monkeypatch.setattr(sources_module, "_START_S", -1000.0)
    [problem] = sources.listing(config).problems
    assert problem.retryable
    assert "s3://bucket/some is sent too slowly" in problem.message


@pytest.mark.parametrize("place", ["web", "s3"])
def test_a_remote_jsonl_names_images_beside_it(
    site: Site, check: Callable[..., Report], digest: str, place: str
) -> None:
    for name, data in files(captions=False).items():
        site.files[f"/bucket/{name}"] = Served(data)
    base = site.url("/bucket") if place == "web" else "s3://bucket"
    found = {"type": "IMAGE_CAPTION_JSONL_DATASET", "jsonl_path": f"{base}/rows.jsonl"}
    assert dataset_of(check(**found).samples).digest == digest
    hostile = ["../secret.png", "/secret.png", "https://else.where/a.png", "missing.png"]
    rows = "\n".join(json.dumps({"image": name, "text": "x"}) for name in hostile)
    site.files["/bucket/rows.jsonl"] = Served(rows.encode(), etag='"2"')
    asked = len(site.asked)
    report = check(**found)
    assert len(report.problems) >= 4
    assert report.samples == []
    assert all("secret" not in request.path for request in site.asked[asked:])


def test_a_hub_dataset_is_its_images(
    tmp_path: Path,
    hub: Hub,
    check: Callable[..., Report],
    digest: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = [{"bytes": data, "path": name} for name, data in IMAGES.items()]
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = {"image": pyarrow.array(images, kind), "text": list(CAPTIONS.values())}
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(table), file)
    hub.holds(converted={"default/train/0000.parquet": file.getvalue()})

    def from_here(*arguments: Any, **options: Any) -> HubRows:
        return fetch_hub(*arguments, **options, hub=hub.api)

    monkeypatch.setattr(sources_module, "fetch_hub", from_here)
    report = check(
        type="HF_HUB_IMAGE_CAPTION_DATASET",
        dataset_name="owner/images",
        hf_cache_dir=str(tmp_path / "hub"),
    )
    assert report.problems == []
    assert dataset_of(report.samples).digest == digest


@pytest.mark.parametrize(
    ("dataset", "reported"),
    [
        ({"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "https://a.b/c"}, "use an ARCHIVE"),
        ({"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "ftp://a.b/c"}, "use an ARCHIVE"),
        ({"type": "ARCHIVE", "archive": "ftp://a.b/c.zip"}, "ftp"),
        ({"type": "ARCHIVE", "archive": "file:///etc/passwd"}, "file"),
        ({"type": "ARCHIVE", "archive": "http://169.254.169.254/latest"}, "http"),
        ({"type": "ARCHIVE", "archive": "https://127.0.0.1/a.zip"}, "not public"),
        ({"type": "ARCHIVE", "archive": "/nowhere/a.zip"}, "there is no such file"),
        ({"type": "ARCHIVE", "archive": "/tmp"}, "there is no such file"),
        ({"type": "ARCHIVE", "archive": "a\0b"}, "there is no such file"),
        ({"type": "IMAGE_CAPTION_JSONL_DATASET", "jsonl_path": "https://[::1]/r"}, "not public"),
    ],
)
def test_an_unreadable_source_is_a_problem(
    check: Callable[..., Report], dataset: dict[str, str], reported: str
) -> None:
    [problem] = check(**dataset).problems
    assert reported in str(problem)


def test_signatures_of_urls_are_not_reported(site: Site, check: Callable[..., Report]) -> None:
    signed = "?X-Amz-Signature=s3cret"
    site.files["/empty.zip"] = Served(zipped({"notes.md": b"none"}))
    site.files["/rows.jsonl"] = Served(b'{"image": "missing.png", "text": "x"}')
    for dataset in (
        {"type": "ARCHIVE", "archive": site.url("/empty.zip") + signed},
        {"type": "ARCHIVE", "archive": site.url("/none.zip") + signed},
        {"type": "IMAGE_CAPTION_JSONL_DATASET", "jsonl_path": site.url("/rows.jsonl") + signed},
    ):
        report = check(**dataset)
        assert report.problems
        assert "s3cret" not in json.dumps(report.document())
    job = {"archive": site.url("/a.zip") + signed, "names": ["a?b", "https://u:p@h/x"], "n": 3}
    assert redact_urls(job) == {
        "archive": site.url("/a.zip"),
        "names": ["a?b", "https://h/x"],
        "n": 3,
    }


def test_an_archive_of_another_checksum_is_refused(
    tmp_path: Path, site: Site, check: Callable[..., Report]
) -> None:
    (tmp_path / "set.zip").write_bytes(zipped(files(captions=True)))
    site.files["/set.zip"] = Served(zipped(files(captions=True)))
    for archive in (str(tmp_path / "set.zip"), site.url("/set.zip")):
        [problem] = check(type="ARCHIVE", archive=archive, sha256="0" * 64).problems
        assert "SHA-256" in str(problem) or "sha256" in str(problem).lower()


def test_nothing_outside_the_roots_is_read(
    tmp_path: Path, digest: str, check: Callable[..., Report]
) -> None:
    folder = tmp_path / "folder"
    (tmp_path / "set.zip").write_bytes(zipped(files(captions=True)))
    roots = (str(folder),)
    rows = {"type": "IMAGE_CAPTION_JSONL_DATASET", "jsonl_path": str(folder / "rows.jsonl")}
    assert check(roots=roots, **rows).problems == []
    for dataset in (
        {"type": "ARCHIVE", "archive": str(tmp_path / "set.zip")},
        {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": str(tmp_path)},
        {"type": "IMAGE_CAPTION_JSONL_DATASET", "jsonl_path": str(tmp_path / "rows.jsonl")},
        {"type": "HF_HUB_IMAGE_CAPTION_DATASET", "dataset_name": "a/b", "hf_cache_dir": "/etc"},
    ):
        [problem] = check(roots=roots, **dataset).problems
        assert "TRAINING_DATA_ROOTS" in str(problem)
    (tmp_path / "secret.png").write_bytes(IMAGES["a.png"])
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "link.txt").write_text("a link", "utf-8")
    dataset = {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": str(folder)}
    assert [str(problem) for problem in check(roots=roots, **dataset).problems] == [
        "link.png: is a link to outside TRAINING_DATA_ROOTS"
    ]


def test_every_kind_of_dataset_is_tested(digest: str) -> None:
    schema = TypeAdapter(ImageCaptionDatasetConfig).json_schema()
    assert set(schema["discriminator"]["mapping"]) == {
        "ARCHIVE",
        "HF_HUB_IMAGE_CAPTION_DATASET",
        "IMAGE_CAPTION_DIR_DATASET",
        "IMAGE_CAPTION_JSONL_DATASET",
    }
