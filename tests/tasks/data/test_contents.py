import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from tasks.data import sources as sources_module
from tasks.data.decoder_pool import DecoderLimits
from tasks.data.hub import HubRows, fetch_hub
from tasks.data.read_policy import ReadPolicy
from tasks.data.sources import Sources
from tasks.data.uploads import StoredUploads
from tasks.data.validation import Report, check_dataset
from tasks.errors import Problem
from tasks.jobs.job import parse_job
from tasks.store import Store
from tests.tasks.data.hub_site import Hub
from tests.tasks.data.reading import check_local
from tests.tasks.data.site import Served, Site
from tests.tasks.data.test_formats import HEIC, colors, encoded
from tests.tasks.jobs.test_flux_lora import with_values

Files = dict[str, bytes]
Finding = tuple[str, str, str, str]


def image(number: int = 0) -> bytes:
    """A PNG that is like no other number's."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").rotate(30 * number).resize((64, 64)).save(buffer, "PNG")
    return buffer.getvalue()


def write(folder: Path, files: Files) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def checked(sources: Sources | None, dataset: dict[str, str], captions: bool = True) -> Report:
    if captions:
        config = parse_job(with_values(data_loader__dataset=dataset)).training
    else:
        loader = {"type": "TEXTUAL_INVERSION_SD_DATA_LOADER", "caption_preset": "object"}
        base = {"type": "SDXL_TEXTUAL_INVERSION", "max_train_steps": 1, "save_every_n_steps": 1}
        tokens = {"placeholder_token": "<thing>", "initializer_token": "cat"}
        document = {**base, **tokens, "data_loader": {**loader, "dataset": dataset}}
        config = parse_job({"training": document}).training
    if sources is None:
        return check_local(config)
    decoders = DecoderLimits(processes=1)
    return check_dataset(config, sources, limits=lambda _: [], decoders=decoders)


def check_folder(folder: Path, files: Files, captions: bool = True) -> Report:
    kind = "IMAGE_CAPTION_DIR_DATASET" if captions else "IMAGE_DIR_DATASET"
    return checked(None, {"type": kind, "dataset_dir": str(write(folder, files))}, captions)


def texts(problems: list[Problem]) -> list[str]:
    return [str(problem) for problem in problems]


CAT = {"cat.png": image(), "cat.txt": b"a cat"}


class Everywhere:
    """The same files in each place that a dataset may be in."""

    def __init__(self, top: Path, bucket: Site, hub: Hub) -> None:
        self._top, self._bucket, self._hub = top, bucket, hub
        store = Store((top / "store").as_uri())
        self._uploads = StoredUploads(store, "acme")
        self._sources = Sources(
            ReadPolicy(hosts=frozenset({bucket.host})),
            *(top / "downloads", top / "scratch"),
            uploads=self._uploads,
        )

    def reports(self, files: Files) -> Iterator[tuple[str, Report]]:
        """Check the files where captions are files."""
        folder = write(self._top / "folder", files)
        yield "folder", self._check("IMAGE_CAPTION_DIR_DATASET", dataset_dir=str(folder))
        for name, data in files.items():
            self._bucket.files[f"/bucket/some/{name}"] = Served(data)
        url = "s3://bucket/some"
        yield "bucket", self._check("IMAGE_CAPTION_DIR_DATASET", dataset_dir=url)
        with zipfile.ZipFile(self._top / "a.zip", "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        yield "zip", self._check("ARCHIVE", archive=str(self._top / "a.zip"))
        with tarfile.open(self._top / "a.tar.gz", "w:gz") as tar:
            tar.add(folder, ".")
        yield "tar", self._check("ARCHIVE", archive=str(self._top / "a.tar.gz"))
        upload_id = "0123456789abcdef" * 2
        self._uploads.put(upload_id, "a.zip", self._top / "a.zip", "0" * 64)
        yield "upload", self._check("ARCHIVE", archive=f"upload:{upload_id}")

    def reports_of_rows(
        self, files: Files, captions: dict[str, str]
    ) -> Iterator[tuple[str, Report]]:
        """Check the files where captions are rows."""
        rows = [json.dumps({"image": name, "text": text}) for name, text in captions.items()]
        all_files = {**files, "rows.jsonl": "\n".join(rows).encode()}
        folder = write(self._top / "rows", all_files)
        kind = "IMAGE_CAPTION_JSONL_DATASET"
        yield "JSONL", self._check(kind, jsonl_path=str(folder / "rows.jsonl"))
        with zipfile.ZipFile(self._top / "rows.zip", "w") as archive:
            for name, data in all_files.items():
                archive.writestr(f"in/{name}", data)
        path = str(self._top / "rows.zip")
        yield "zip with JSONL", self._check("ARCHIVE", archive=path, jsonl="in/rows.jsonl")
        images = [{"bytes": files[name], "path": name} for name in captions]
        table = pyarrow.table({"image": images, "text": list(captions.values())})
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(table, buffer)
        self._hub.holds(converted={"default/train/0000.parquet": buffer.getvalue()})
        cache = str(self._top / "hub")
        kind = "HF_HUB_IMAGE_CAPTION_DATASET"
        yield "Hub", self._check(kind, dataset_name="owner/images", hf_cache_dir=cache)

    def _check(self, kind: str, **options: str) -> Report:
        return checked(self._sources, {"type": kind, **options})


@pytest.fixture
def everywhere(
    tmp_path: Path, bucket: Site, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> Everywhere:
    def from_here(*arguments: Any, **options: Any) -> HubRows:
        return fetch_hub(*arguments, **options, hub=hub.api)

    monkeypatch.setattr(sources_module, "fetch_hub", from_here)
    return Everywhere(tmp_path, bucket, hub)


def findings(report: Report, name_of: Callable[[str], str]) -> set[Finding]:
    return {
        (it["severity"], name_of(it["file"]), it["message"], it["remedy"])
        for it in report.document()["findings"]
    }


def test_the_same_images_have_the_same_findings_everywhere(everywhere: Everywhere) -> None:
    captions = {
        "good.png": "good",
        "photo.heic": "a photo",
        "phone.jpg": "two images in a file",
        "renamed.png": "a JPEG",
        "moving.gif": "a GIF",
        "renamed.jpg": "a GIF",
        "page.png": "a web page",
        "half.png": "half of an image",
        "nul.png": "n\0u\0l\0",
        "quiet.png": "\u200b",
    }
    other = Image.new("RGB", (64, 48), "white")
    images: Files = {
        **{name: image(number) for number, name in enumerate(captions)},
        "photo.heic": HEIC,
        "phone.jpg": encoded("MPO", colors().rotate(90), save_all=True, append_images=[other]),
        "renamed.png": encoded("JPEG", colors().rotate(180)),
        "moving.gif": encoded("GIF"),
        "renamed.jpg": encoded("GIF"),
        "page.png": b"<!DOCTYPE html><html>Not found</html>",
        "half.png": image()[:60],
    }
    beside = {f"{name.rpartition('.')[0]}.txt": text for name, text in captions.items()}
    beside["renamed.txt"] = "both"
    files = images | {name: text.encode() for name, text in beside.items()}

    def stem(location: str) -> str:
        """The image that a finding is about, wherever it is."""
        return location.rpartition("(")[2].rstrip(")").replace(".txt", ".png")

    expected = {
        ("warning", "moving.gif", "is a GIF, which is not read", "save it as PNG"),
        ("warning", "renamed.jpg", "is a GIF, which is not read", "save it as PNG"),
        ("warning", "renamed.png", "is a JPEG image; it is read as one", "rename it"),
    }
    errors = {"page.png", "half.png", "nul.png", "quiet.png"}
    used = {"good", "a photo", "two images in a file"}
    seen = {}
    for place, report in (
        *everywhere.reports(files),
        *everywhere.reports_of_rows(images, captions),
    ):
        found = findings(report, stem)
        assert expected <= found, place
        assert {name for severity, name, *_ in found if severity == "error"} == errors, place
        assert used <= {sample.caption for sample in report.samples}, place
        assert len(report.samples) == 4, place
        # What depends on captions that are files, and one text on the decoded size.
        seen[place] = {it for it in found if "name" not in it[2] and "belongs" not in it[2]}
    assert len(seen) == 8
    for place, found in seen.items():
        assert found == seen["folder"], place
