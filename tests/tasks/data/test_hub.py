import io
import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import HfApi, close_session, get_session

from tasks.data import hub as hub_module
from tasks.data.hub import HubRows, fetch_hub
from tasks.jobs.datasets import HFHubImageCaptionDatasetConfig
from tests.tasks.data.hub_site import NAME, Hub, sha_of

IMAGE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def parquet(images: list[Any], captions: Any, image_type: Any = IMAGE, **columns: Any) -> bytes:
    """A parquet file as the Hub's are, with a column more than is read."""
    table = {
        "image": pyarrow.array(images, image_type),
        "text": captions if isinstance(captions, pyarrow.Array) else pyarrow.array(captions),
        "size": pyarrow.array([1] * len(images)),
        **columns,
    }
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(table), sink)
    return sink.getvalue()


def one(caption: str) -> bytes:
    """A parquet file of one row, known by its caption."""
    return parquet([{"bytes": b"image", "path": "cat.jpg"}], [caption])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where images are written; what is downloaded goes to its neighbour."""
    path = tmp_path / "images"
    path.mkdir()
    return path


def fetched(
    hub: Hub | HfApi,
    folder: Path,
    *,
    captions: bool = True,
    max_bytes: int = 2**20,
    check_stop: Callable[[], object] = lambda: None,
    **values: Any,
) -> HubRows:
    # Made without its checks: the job model refuses such datasets as long as none reads them.
    config = HFHubImageCaptionDatasetConfig.model_construct(
        **{"dataset_name": NAME, "hf_cache_dir": str(folder.parent / "cache"), **values}
    )
    api = hub.api if isinstance(hub, Hub) else hub
    return fetch_hub(
        config, folder, captions=captions, max_bytes=max_bytes, check_stop=check_stop, hub=api
    )


def captions_of(rows: HubRows) -> list[str | None]:
    assert rows.problems == []
    return [caption for _, _, caption in rows.files]


def problems_of(rows: HubRows) -> list[str]:
    return [str(problem) for problem in rows.problems]


def test_images_are_written_with_their_names_and_captions(hub: Hub, folder: Path) -> None:
    images = [
        {"bytes": b"first", "path": "cat.JPG"},
        {"bytes": b"second", "path": None},
        {"bytes": b"third", "path": "dog.exe"},
    ]
    more = parquet([{"bytes": b"fourth", "path": "a/b.webp"}], ["four"])
    first = parquet(images, ["one", "two", "three"])
    hub.holds(converted={"default/train/0000.parquet": first, "default/train/0001.parquet": more})
    rows = fetched(hub, folder)
    assert rows == HubRows(
        [
            (f"{NAME} row 0 (cat.JPG)", folder / "00000000.jpg", "one"),
            (f"{NAME} row 1", folder / "00000001.png", "two"),
            (f"{NAME} row 2 (dog.exe)", folder / "00000002.png", "three"),
            (f"{NAME} row 3 (b.webp)", folder / "00000003.webp", "four"),
        ]
    )
    written = [file.read_bytes() for _, file, _ in rows.files]
    assert written == [b"first", b"second", b"third", b"fourth"]


def test_a_rows_path_is_never_used_as_a_path(hub: Hub, folder: Path) -> None:
    paths = ["../../up.png", "/etc/passwd", "x" * 5000 + ".png", "nul\0.png", "line\nbreak.jpg", ""]
    images = [{"bytes": b"image", "path": path} for path in paths]
    hub.holds(converted={"default/train/0000.parquet": parquet(images, ["a"] * len(paths))})
    rows = fetched(hub, folder)
    assert rows.problems == []
    assert sorted(folder.rglob("*")) == [file for _, file, _ in rows.files]
    assert {file.parent for _, file, _ in rows.files} == {folder}
    for name, _, _ in rows.files:
        assert name.isprintable()
        assert len(name) < 200


@pytest.mark.parametrize("image_type", [pyarrow.binary(), pyarrow.large_binary()])
def test_images_may_be_plain_bytes(hub: Hub, folder: Path, image_type: Any) -> None:
    file = parquet([b"image"], ["one"], image_type)
    hub.holds(converted={"default/train/0000.parquet": file})
    assert captions_of(fetched(hub, folder)) == ["one"]
    assert (folder / "00000000.png").read_bytes() == b"image"


def test_unused_captions_may_be_missing(hub: Hub, folder: Path) -> None:
    file = parquet([{"bytes": b"image", "path": "cat.png"}], [None])
    hub.holds(converted={"default/train/0000.parquet": file})
    rows = fetched(hub, folder, captions=False, caption_column="no such column")
    assert captions_of(rows) == [None]


def test_the_first_of_several_captions_is_used(hub: Hub, folder: Path) -> None:
    images = [{"bytes": b"image", "path": "cat.png"}] * 2
    hub.holds(converted={"default/train/0000.parquet": parquet(images, [["a", "b"], ["c"]])})
    assert captions_of(fetched(hub, folder)) == ["a", "c"]


@pytest.mark.parametrize(
    ("caption", "problem"),
    [
        (pyarrow.array([None], pyarrow.string()), "has no text in the column 'text'"),
        (pyarrow.array([7]), "has no text in the column 'text'"),
        (pyarrow.array([[]], pyarrow.list_(pyarrow.string())), "has no text in the column 'text'"),
        (pyarrow.array([[None]], pyarrow.list_(pyarrow.string())), "has no text in the column"),
        (pyarrow.array([2**62], pyarrow.timestamp("us")), "cannot be read: "),
        (
            pyarrow.StringArray.from_buffers(
                1, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xff\xfe")
            ),
            "cannot be read: 'utf-8' codec",
        ),
        (pyarrow.array(["x" * 70_000]), "has a caption of over 65536 bytes"),
    ],
    ids=["null", "number", "empty list", "list of null", "far date", "no UTF-8", "too long"],
)
def test_a_caption_must_be_text(hub: Hub, folder: Path, caption: Any, problem: str) -> None:
    file = parquet([{"bytes": b"image", "path": "cat.png"}], caption)
    hub.holds(converted={"default/train/0000.parquet": file})
    [found] = problems_of(fetched(hub, folder))
    assert found.startswith(f"{NAME} row 0: {problem}")


def test_a_row_needs_image_bytes(hub: Hub, folder: Path) -> None:
    images = [
        None,
        {"bytes": None, "path": "https://example.org/cat.png"},
        {"bytes": b"", "path": "/etc/passwd"},
        {"bytes": b"image", "path": "cat.png"},
    ]
    hub.holds(converted={"default/train/0000.parquet": parquet(images, ["a"] * 4)})
    rows = fetched(hub, folder)
    assert [problem.location for problem in rows.problems] == [f"{NAME} row {n}" for n in range(3)]
    assert f"{NAME} row 1: has no image bytes" in problems_of(rows)[1]
    assert [file.name for _, file, _ in rows.files] == ["00000003.png"]


def test_urls_of_images_are_not_followed(hub: Hub, folder: Path) -> None:
    file = parquet([f"{hub.api.endpoint}/cat.png"], ["a"], pyarrow.string())
    hub.holds(converted={"default/train/0000.parquet": file})
    [problem] = problems_of(fetched(hub, folder))
    assert "row 0: has no image bytes; paths and URLs are not followed" in problem
    assert not any("cat.png" in path for path in hub.asked)


def test_many_invalid_rows_are_counted(hub: Hub, folder: Path) -> None:
    hub.holds(converted={"default/train/0000.parquet": parquet([None] * 130, ["a"] * 130)})
    problems = problems_of(fetched(hub, folder))
    assert len(problems) == 101
    assert problems[-1] == f"{NAME}: 30 more rows have such problems"


@pytest.mark.parametrize(
    ("option", "remedy"),
    [
        ("image_column", "set image_column: image"),
        ("caption_column", "set caption_column: text"),
    ],
)
def test_a_missing_column_is_reported_with_the_others(
    hub: Hub, folder: Path, option: str, remedy: str
) -> None:
    hub.holds(
        converted={
            "default/train/0000.parquet": one("a"),
            "default/train/0001.parquet": one("b"),
        }
    )
    values: dict[str, Any] = {option: "photo"}
    [problem] = problems_of(fetched(hub, folder, **values))
    assert problem == (
        f"training.data_loader.dataset.{option}: {NAME}/default/train/0000.parquet "
        f"has no column 'photo'; it has image, text, size; {remedy}"
    )
    assert len(hub.downloads()) == 1  # the second file is not fetched for this


def test_a_long_list_of_columns_is_shortened(hub: Hub, folder: Path) -> None:
    wide = {f"c{n}": pyarrow.array([n]) for n in range(40)}
    file = parquet([None], ["a"], **wide)
    hub.holds(converted={"default/train/0000.parquet": file})
    [problem] = problems_of(fetched(hub, folder, image_column="photo"))
    assert problem.endswith(", c6 and 33 more; set image_column: image")


@pytest.mark.parametrize("damage", ["nothing", "no parquet", "broken off", "bytes changed"])
def test_a_damaged_file_is_reported_by_name(hub: Hub, folder: Path, damage: str) -> None:
    sound = one("a")
    data = {
        "nothing": b"",
        "no parquet": b"<html>Please log in</html>",
        "broken off": sound[: len(sound) // 2],
        "bytes changed": sound[:4] + b"\xff" * 40 + sound[44:],
    }[damage]
    hub.holds(converted={"default/train/0000.parquet": data})
    [problem] = problems_of(fetched(hub, folder))
    assert f"{NAME}/default/train/0000.parquet is damaged or cannot be read: " in problem
    assert "\n" not in problem


def test_a_decompression_bomb_is_refused_by_its_footer(hub: Hub, folder: Path) -> None:
    images = [{"bytes": bytes(10 * 2**20), "path": "cat.png"}] * 8
    table = pyarrow.table({"image": images, "text": ["a"] * 8})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="zstd", use_dictionary=False)
    assert len(buffer.getvalue()) < 20_000
    hub.holds(converted={"default/train/0000.parquet": buffer.getvalue()})
    [problem] = problems_of(fetched(hub, folder))
    assert "0000.parquet unpacks to over 200 times its size" in problem
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("length", [20 * 2**20, 2**31])
def test_a_large_footer_is_not_parsed(hub: Hub, folder: Path, length: int) -> None:
    sound = one("a")
    file = b"PAR1" + bytes(21 * 2**20) + struct.pack("<I", length) + sound[-4:]
    hub.holds(converted={"default/train/0000.parquet": file})
    [problem] = problems_of(fetched(hub, folder, max_bytes=2**30))
    assert "footer" in problem or "damaged" in problem


def test_a_stop_ends_the_reading_of_a_file(hub: Hub, folder: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop() -> None:
        raise StoppedError

    hub.holds(converted={"default/train/0000.parquet": one("a")})
    with pytest.raises(StoppedError):
        fetched(hub, folder, check_stop=stop)


def test_more_bytes_than_allowed_are_not_downloaded(hub: Hub, folder: Path) -> None:
    file = one("a")
    hub.holds(main={"train-0.parquet": file, "train-1.parquet": file})
    [problem] = problems_of(fetched(hub, folder, max_bytes=2 * len(file) - 1))
    assert f"{NAME} has {2 * len(file):,} bytes; the maximum is {2 * len(file) - 1:,}" in problem
    assert hub.downloads() == []
    assert len(fetched(hub, folder, max_bytes=2 * len(file)).files) == 2


def test_no_more_bytes_than_allowed_are_written(hub: Hub, folder: Path) -> None:
    images = [{"bytes": bytes(10_000), "path": "cat.png"}] * 10  # packed, they are few bytes
    file = parquet(images, ["a"] * 10)
    assert len(file) < 25_000
    hub.holds(converted={"default/train/0000.parquet": file})
    rows = fetched(hub, folder, max_bytes=25_000)
    assert "have over 25,000 bytes" in problems_of(rows)[0]
    assert sum(path.stat().st_size for path in folder.iterdir()) == 20_000


def test_no_more_rows_than_allowed_are_read(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "MAX_ITEMS", 2)
    images = [{"bytes": b"image", "path": "cat.png"}] * 3
    hub.holds(converted={"default/train/0000.parquet": parquet(images, ["a"] * 3)})
    rows = fetched(hub, folder)
    assert "has over 2 rows, the maximum" in problems_of(rows)[0]
    assert len(rows.files) == len(list(folder.iterdir())) == 2
    hub.holds(converted={"default/train/0001.parquet": parquet(images[:2], ["a"] * 2)})
    assert len(captions_of(fetched(hub, folder))) == 2


def test_a_dataset_without_rows_is_a_problem(hub: Hub, folder: Path) -> None:
    hub.holds(converted={"default/train/0000.parquet": parquet([], pyarrow.array([], "string"))})
    [problem] = problems_of(fetched(hub, folder))
    assert "has no rows" in problem


def test_the_hubs_conversion_is_preferred(hub: Hub, folder: Path) -> None:
    converted = {
        "default/test/0000.parquet": one("test"),
        "default/train/0000.parquet": one("converted"),
        "default/train/index.duckdb": b"",
    }
    hub.holds(converted=converted, main={"train.parquet": one("own")})
    assert captions_of(fetched(hub, folder)) == ["converted"]


def test_a_partial_conversion_is_read_with_a_warning(hub: Hub, folder: Path) -> None:
    converted = {"default/partial-train/0000.parquet": one("part")}
    hub.holds(converted=converted, main={"script.py": b"", "index.parquet": one("index")})
    rows = fetched(hub, folder)
    assert captions_of(rows) == ["part"]
    assert "only the first part" in str(rows.warnings[0])
    hub.holds(converted=converted, main={"data/train-00000-of-00001.parquet": one("whole")})
    rows = fetched(hub, folder)
    assert captions_of(rows) == ["whole"]
    assert rows.warnings == []


@pytest.mark.parametrize(
    ("paths", "read"),
    [
        (["data/test-0.parquet", "data/train-00000-of-00002.parquet"], [1]),
        (["data/train-00001-of-00002.parquet", "data/train-00000-of-00002.parquet"], [1, 0]),
        (["train.parquet", "validation.parquet", "pretrain/a.parquet"], [0]),
        (["train/0.parquet", "test/0.parquet", "trainers/0.parquet"], [0]),
        (["data/train-0.parquet", "train-0.parquet", "train/0.parquet"], [0, 1, 2]),
        (["en/train-0.parquet", "en/test-0.parquet", "README.md"], [0]),
        (["a.parquet", "b.parquet", "c.csv"], [0, 1]),
    ],
)
def test_own_files_of_the_train_split_are_preferred(
    hub: Hub, folder: Path, paths: list[str], read: list[int]
) -> None:
    hub.holds(main={path: one(path) for path in paths})
    assert captions_of(fetched(hub, folder)) == [paths[n] for n in read]


CONFIGS = {
    "converted": ("{}/train/0000.parquet", "converted"),
    "own": ("{}/train-0.parquet", "main"),
}


@pytest.mark.parametrize("layout", CONFIGS)
def test_a_configuration_is_read_by_its_name(hub: Hub, folder: Path, layout: str) -> None:
    path, where = CONFIGS[layout]
    own = {"train.parquet": one("own")} if layout == "converted" else {}
    hub.holds(**{"main": own, where: {path.format(name): one(name) for name in ("en", "de")}})
    assert captions_of(fetched(hub, folder, dataset_config_name="de")) == ["de"]
    where_told = "training.data_loader.dataset.dataset_config_name"
    assert problems_of(fetched(hub, folder, dataset_config_name="fr")) == [
        f"{where_told}: {NAME} has no configuration 'fr'; it has de, en{', default' if own else ''}"
    ]
    assert problems_of(fetched(hub, folder)) == [
        f"{where_told}: {NAME} has several configurations; name one of de, en"
    ]


@pytest.mark.parametrize("layout", CONFIGS)
@pytest.mark.parametrize("names", [("only",), ("default", "en")])
def test_the_default_or_only_configuration_needs_no_name(
    hub: Hub, folder: Path, layout: str, names: tuple[str, ...]
) -> None:
    path, where = CONFIGS[layout]
    hub.holds(**{where: {path.format(name): one(name) for name in names}})
    assert captions_of(fetched(hub, folder)) == [names[0]]


def test_other_splits_are_named(hub: Hub, folder: Path) -> None:
    converted = {f"default/{it}/0000.parquet": one(it) for it in ("test", "train", "validation")}
    hub.holds(converted=converted)
    rows = fetched(hub, folder)
    assert captions_of(rows) == ["train"]
    assert [str(it) for it in rows.warnings] == [
        "training.data_loader.dataset.dataset_name: only the train split is read, and not 2 other "
        f"files of {NAME}: default/test/0000.parquet, default/validation/0000.parquet"
    ]


def test_scripts_of_a_repository_are_not_run(hub: Hub, folder: Path) -> None:
    hub.holds(main={"images.py": b"raise SystemExit", "cat.png": b""})
    assert problems_of(fetched(hub, folder)) == [
        f"training.data_loader.dataset.dataset_name: {NAME} has no parquet files "
        "with a train split; its scripts are never run"
    ]
    assert hub.downloads() == []


def test_all_files_are_of_one_commit(hub: Hub, folder: Path) -> None:
    hub.holds(main={"train.parquet": one("a")})
    assert captions_of(fetched(hub, folder)) == ["a"]
    sha = sha_of("main")
    of_main = [path for path in hub.asked if "revision/" not in path]
    assert of_main[0] == f"GET /api/datasets/{NAME}"
    assert all(f"/{sha}" in path for path in of_main[1:])
    assert len(of_main) > 2


def test_downloads_stay_in_the_cache(hub: Hub, folder: Path) -> None:
    hub.holds(main={"train.parquet": one("a")})
    assert captions_of(fetched(hub, folder)) == captions_of(fetched(hub, folder)) == ["a"]
    assert len(hub.downloads()) == 1
    assert (folder.parent / "cache").is_dir()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("owner/gated", "owner/gated is gated: accept its license and set HF_TOKEN on the workers"),
        ("owner/missing", "owner/missing is not a dataset that HF_TOKEN can read"),
        ("a/b/c", "a/b/c is not a Hub id"),
        ("../up", "../up is not a Hub id"),
    ],
)
def test_a_dataset_that_cannot_be_read_is_a_problem(
    hub: Hub, folder: Path, name: str, problem: str
) -> None:
    [found] = problems_of(fetched(hub, folder, dataset_name=name))
    assert found == f"training.data_loader.dataset.dataset_name: {problem}"


@pytest.mark.parametrize(
    ("page_for", "page"),
    [
        *[("/revision/", page) for page in (b"<html>Log in</html>", b"{}", b"[]", b"1")],
        ("/revision/", b'{"id": "no commit"}'),
        *[("/tree/", page) for page in (b"<html>Log in</html>", b'{"a": 1}', b"[1]", b"1")],
        *[("/tree/", json.dumps([entry]).encode()) for entry in ({}, {"type": "file"}, None)],
        ("/resolve/", b"<html>Log in</html>"),
    ],
)
def test_a_proxys_page_is_not_a_hub_answer(
    hub: Hub, folder: Path, page_for: str, page: bytes
) -> None:
    hub.holds(converted={"default/train/0000.parquet": one("a")})
    hub.page, hub.page_for = page, page_for
    [problem] = problems_of(fetched(hub, folder))
    assert "the Hub request for owner/images failed" in problem
    assert "\n" not in problem


def test_a_listed_file_that_is_missing_is_a_problem(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.holds(main={"train.parquet": one("a")})
    monkeypatch.setitem(hub.revisions, "main", Vanishing(hub.revisions["main"]))
    [problem] = problems_of(fetched(hub, folder))
    assert f"the Hub request for {NAME} failed: " in problem


class Vanishing(dict[str, bytes]):
    """Files that are listed, but not there when they are asked for."""

    def __contains__(self, key: object) -> bool:
        return False


def test_pyarrow_is_imported_only_when_used() -> None:
    program = "import sys, tasks.data.hub; sys.exit('pyarrow' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_unreachable_hub_is_retryable(folder: Path) -> None:
    [problem] = problems_of(fetched(HfApi(endpoint="http://127.0.0.1:9"), folder))
    assert "the Hub request for owner/images failed" in problem


def test_a_client_that_another_call_closes_is_retryable(hub: Hub, folder: Path) -> None:
    get_session().close()
    try:
        [problem] = fetched(hub, folder).problems
    finally:
        close_session()  # the next test's call makes a new client
    assert "the client has been closed" in problem.message
    assert problem.retryable


def test_offline_mode_is_reported(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    [problem] = problems_of(fetched(hub, folder))
    assert "the Hub request for owner/images failed" in problem
