import io
import json
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from tasks.data import sources as sources_module
from tasks.data.decoding.decoder_pool import DecoderLimits
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


def test_the_same_other_files_have_the_same_findings_everywhere(everywhere: Everywhere) -> None:
    files = {
        **CAT,
        **dict.fromkeys((".DS_Store", "._cat.png", "Thumbs.db", "desktop.ini"), b"x"),
        **dict.fromkeys(("__MACOSX/._cat.png", ".git/config", ".git/HEAD"), b"x"),
        **dict.fromkeys((".ipynb_checkpoints/cat.png", "README.md", "inner.zip"), b"x"),
        **dict.fromkeys(("metadata.jsonl", "cat.caption", "orphan.txt", "photo.dng"), b"x"),
        **dict.fromkeys(("photo.txt", "clip.MOV", "layers.psd"), b"x"),
        "dog.png": image(1),
        "dog.tags": b"a dog",
        "DOG.JPG": image(2),
        "Dog.txt": b"two images",
    }
    expected = {
        "7 system files and folders are ignored: .DS_Store, ._cat.png, .git, .ipynb_checkpoints, "
        "Thumbs.db, __MACOSX, desktop.ini",
        "README.md: is neither an image nor a caption; it is not used",
        "inner.zip: is an archive, which is not unpacked; unpack it, or leave it out",
        "metadata.jsonl: is not read by this type of dataset; to use its captions, save them "
        "as JSONL and name that file as the dataset",
        "cat.caption: is not read: its image has another caption",
        "dog.tags: is not read: its image has another caption",
        "orphan.txt: belongs to no image; it is not used",
        "photo.txt: belongs to an image that is not read; it is not used",
        "photo.dng: is a camera RAW file, which is not read; export it as JPEG or PNG",
        "clip.MOV: is a video, which is not read; save its frames as PNG",
        "layers.psd: is a Photoshop file, which is not read; save it as PNG",
        "DOG.JPG and dog.png: have one name and one caption, which each is trained with; keep one, "
        "or rename it with its caption",
        "DOG.JPG: is a PNG image; it is read as one; rename it",
    }
    for place, report in everywhere.reports(files):
        assert report.problems == [], place
        warnings = {str(it) for it in report.warnings if "smaller than" not in it.message}
        short = {it.rpartition(": ")[0] and it.split(": ", 1)[1] for it in warnings}
        assert expected <= warnings | short, (place, expected - warnings - short)
        assert len(warnings) == len(expected), (place, warnings)
        assert len(report.samples) == 3, place


def test_a_subfolder_of_a_folder_is_named_with_its_count(tmp_path: Path) -> None:
    files = {
        **CAT,
        **{f"10_mycat woman/{n}.{it}": b"x" for n in range(3) for it in ("png", "txt")},
        "more/deep/a.gif": b"x",
        "more/notes.md": b"x",
        "empty/.DS_Store": b"x",
    }
    report = check_folder(tmp_path, files)
    assert report.problems == []
    assert [it for it in texts(report.warnings) if "smaller" not in it] == [
        "10_mycat woman: is a subfolder of 6 files, 3 of them images, and is not read; nor are the "
        "10 repeats of its name applied; move them up, or name it as dataset_dir; multiply the "
        "job's epochs or steps by 10 instead",
        "more/deep: is a subfolder of 1 file, 1 of them images, and is not read; move them up, or "
        "name it as dataset_dir",
        "more: is a subfolder of 1 file, 0 of them images, and is not read; move them up, or name "
        "it as dataset_dir",
        f"{tmp_path}: 1 system file or folder is ignored: empty/.DS_Store",
    ]


def test_images_in_subfolders_only_are_an_error(tmp_path: Path) -> None:
    files = {f"img/5_cat/{number}.png": b"x" for number in range(3)}
    report = check_folder(tmp_path, {**files, "reg/1_cat/a.jpg": b"x", "notes.txt": b"x"})
    assert texts(report.problems) == [
        f"{tmp_path}: has no image at its top, and its subfolders are not read: img/5_cat (3), "
        "reg/1_cat (1); name the one with the images as dataset_dir"
    ]
    [regular] = [it for it in texts(report.warnings) if it.startswith("reg/1_cat")]
    assert regular.endswith("is not read; move them up, or name it as dataset_dir")


def test_masks_beside_their_images_are_no_images(tmp_path: Path) -> None:
    files = dict.fromkeys(("CAT-masklabel.png", "cat-condlabel.png"), CAT["cat.png"])
    report = check_folder(tmp_path, {**CAT, **files, "a-masklabel.png": image(1)})
    assert texts(report.problems) == [
        "a-masklabel.png: has no caption; write it into a-masklabel.txt"
    ]
    for name in files:
        message = "is a mask by its name, as of OneTrainer; it is not used"
        remedy = "name it in the mask column of a JSONL file"
        assert f"{name}: {message}; {remedy}" in texts(report.warnings)


def test_repeats_in_an_archive_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("set/3_cat/cat.png", CAT["cat.png"])
        archive.writestr("set/3_cat/cat.txt", "a cat")
    sources = Sources(ReadPolicy(), tmp_path / "downloads", tmp_path / "scratch")
    report = checked(sources, {"type": "ARCHIVE", "archive": str(tmp_path / "a.zip")})
    assert [sample.source for sample in report.samples] == ["set/3_cat/cat.png"]
    assert (
        "set/3_cat: the 3 repeats of its name are not applied to its 1 image; multiply the job's "
        "epochs or steps by 3 instead"
    ) in texts(report.warnings)


def test_many_subfolders_are_counted(tmp_path: Path) -> None:
    files = {f"{number:03}/{n}.png": b"x" for number in range(100) for n in range(number % 3 + 1)}
    found = [it for it in texts(check_folder(tmp_path, {**CAT, **files}).warnings) if "sub" in it]
    assert len(found) <= 21
    assert any("80 more subfolders, of 160 files, are not read" in it for it in found)


def test_one_cause_is_one_finding_however_many_files_it_has(tmp_path: Path) -> None:
    files = {f"{number:05}.gif": b"x" for number in range(2000)}
    files |= {f"{number:05}.png": b"x" for number in range(500)}
    report = check_folder(tmp_path, {**CAT, **files})
    assert texts(report.problems) == [
        "each of 500 (00000.png, 00001.png, 00002.png, 00003.png, 00004.png, ...): has no caption; "
        "for the first one, write it into 00000.txt"
    ]
    assert [it for it in texts(report.warnings) if "GIF" in it] == [
        "each of 2,000 (00000.gif, 00001.gif, 00002.gif, 00003.gif, 00004.gif, ...): is a GIF, "
        "which is not read; save it as PNG"
    ]


@pytest.mark.parametrize(
    ("image_name", "caption"),
    [
        ("DOG.PNG", "DOG.TXT"),
        ("Dog.png", "dog.txt"),
        ("straße.png", "STRASSE.txt"),
        (unicodedata.normalize("NFD", "café é.png"), unicodedata.normalize("NFC", "café é.txt")),
        (unicodedata.normalize("NFC", "が.jpg"), unicodedata.normalize("NFD", "が.Txt")),
    ],
)
def test_a_caption_is_found_by_an_equal_name(tmp_path: Path, image_name: str, caption: str) -> None:
    report = check_folder(tmp_path, {image_name: CAT["cat.png"], caption: b"a dog"})
    assert report.problems == []
    assert [sample.caption for sample in report.samples] == ["a dog"]


def test_a_caption_of_the_same_spelling_has_precedence(tmp_path: Path) -> None:
    files = {"dog.png": image(), "dog.txt": b"small", "DOG.png": image(1), "DOG.txt": b"large"}
    report = check_folder(tmp_path, {**files, "Dog.TXT": b"neither"})
    captions = {sample.source: sample.caption for sample in report.samples}
    assert captions == {"DOG.png": "large", "dog.png": "small"}
    assert "Dog.TXT: is not read: its image has another caption" in texts(report.warnings)


@pytest.mark.parametrize(
    ("sidecar", "remedy"),
    [
        ("dog.caption", "rename dog.caption to dog.txt"),
        ("dog.CAP", "rename dog.CAP to dog.txt"),
        ("dog.png.txt", "rename dog.png.txt to dog.txt"),
        ("Dog.caption.txt", "rename Dog.caption.txt to dog.txt"),
        ("dog.txt.json", "write the text of dog.txt.json into dog.txt"),
        ("dog.json", "write the text of dog.json into dog.txt"),
        ("dog.txt.bak", "rename dog.txt.bak to dog.txt"),
    ],
)
def test_a_caption_of_another_suffix_is_offered(tmp_path: Path, sidecar: str, remedy: str) -> None:
    report = check_folder(tmp_path, {**CAT, "dog.png": image(1), sidecar: b"a dog"})
    assert texts(report.problems) == [f"dog.png: has no .txt caption; {remedy}"]
    assert not any(sidecar in it for it in texts(report.warnings))


def test_captions_that_a_job_does_not_use_are_named(tmp_path: Path) -> None:
    report = check_folder(tmp_path, {**CAT, "dog.png": image(1), "old.txt": b""}, captions=False)
    assert report.problems == []
    assert [it for it in texts(report.warnings) if ".txt" in it] == [
        "cat.txt: is a caption; this job uses none",
        "old.txt: is a caption; this job uses none",
    ]


def test_a_dataset_of_other_formats_only_is_an_error(tmp_path: Path) -> None:
    report = check_folder(tmp_path, {"a.png": encoded("GIF"), "a.txt": b"by its content"})
    none = f"{tmp_path}: has no image (JPEG, PNG, WEBP, BMP, AVIF, HEIF)"
    assert texts(report.problems) == [none]
    (tmp_path / "a.png").rename(tmp_path / "a.gif")
    assert texts(check_folder(tmp_path, {}).problems) == [none]


def test_links_and_odd_files_are_named(tmp_path: Path) -> None:
    folder, other = tmp_path / "set", tmp_path / "other"
    write(folder, CAT)
    write(other, {"x.png": b"x"})
    (folder / "linked").symlink_to(other)
    (folder / "broken.png").symlink_to(folder / "none.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "broken.txt").write_text("a caption", "utf-8")
    (folder / "loop.txt").write_text("a caption", "utf-8")
    report = check_folder(folder, {})
    assert "linked: is a link to a folder, or cannot be opened; it is not read" in texts(
        report.warnings
    )
    assert [problem.location for problem in report.problems] == ["loop.png", "broken.png"]
