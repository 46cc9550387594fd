import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tasks.data.ingest import ingest
from tasks.data.tokens import TokenLimit
from tasks.data.validation import Report
from tasks.dataset import Dataset, dataset_of
from tasks.errors import DatasetError
from tasks.jobs.job import parse_job
from tasks.store import Store, dataset_key, image_key
from tests.tasks.data.profiles import DISPLAY_P3
from tests.tasks.data.reading import check_local
from tests.tasks.jobs.test_flux_lora import with_values

Check = Callable[..., Report]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images that nothing is wrong with."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, color in (("a.png", "red"), ("b.jpg", "green"), ("c.webp", "blue")):
        Image.new("RGB", (512, 512), color).save(folder / name)
        (folder / name).with_suffix(".txt").write_text(f"a {color} field\n", "utf-8")
    return folder


def check_folder(folder: Path, **values: Any) -> Report:
    dataset = {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": str(folder)}
    return check_local(parse_job(with_values(data_loader__dataset=dataset, **values)).training)


def check_jsonl(path: Path, *rows: Any, **columns: str) -> Report:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows), "utf-8")
    dataset = {"type": "IMAGE_CAPTION_JSONL_DATASET", "jsonl_path": str(path), **columns}
    return check_local(parse_job(with_values(data_loader__dataset=dataset)).training)


def messages(report: Report) -> list[str]:
    return [str(problem) for problem in report.problems]


def warned(report: Report) -> list[str]:
    return [str(warning) for warning in report.warnings]


@pytest.mark.parametrize("damaged", ["image", "caption"])
def test_a_check_ends_after_many_problems(
    folder: Path, damaged: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.data.validation.MAX_PROBLEMS", 3)
    for number in range(20):
        (folder / f"{number}.png").write_bytes(b"not an image")
        if damaged == "image":
            (folder / f"{number}.txt").write_text("a caption", "utf-8")
    report = check_folder(folder)
    assert len(report.problems) == 4
    assert messages(report)[-1] == f"{folder}: has 3 problems or more; the rest is not checked"


def test_a_valid_folder_has_no_problems(folder: Path) -> None:
    report = check_folder(folder)
    assert (messages(report), warned(report)) == ([], [])
    assert [sample.caption for sample in report.samples] == [
        "a red field",
        "a green field",
        "a blue field",
    ]
    assert report.document()["buckets"] == {"512x512": 3}


def test_all_problems_are_reported_by_file(folder: Path) -> None:
    (folder / "a.txt").unlink()
    (folder / "b.txt").write_text("  \n", "utf-8")
    (folder / "c.txt").write_bytes(b"caf\xe9")
    (folder / "d.png").write_bytes(b"not an image")
    (folder / "d.txt").write_text("d", "utf-8")
    report = check_folder(folder)
    assert len(messages(report)) == 4
    for part in (
        "a.png: has no caption; write it into a.txt",
        "b.jpg: has an empty caption",
        "c.txt: cannot be read as UTF-8 text",
        "d.png: is not a JPEG, PNG, WEBP, BMP, AVIF, HEIF image",
    ):
        assert any(part in line for line in messages(report)), part


def test_a_caption_may_start_with_a_byte_order_mark(folder: Path) -> None:
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbfa red field")
    assert check_folder(folder).samples[0].caption == "a red field"


def test_a_caption_without_an_image_is_only_a_warning(folder: Path) -> None:
    (folder / "z.txt").write_text("nothing", "utf-8")
    report = check_folder(folder)
    assert messages(report) == []
    assert warned(report) == ["z.txt: belongs to no image; it is not used"]


def test_an_overlong_caption_is_refused(folder: Path) -> None:
    (folder / "a.txt").write_text("word " * 20000, "utf-8")
    assert "longer than" in messages(check_folder(folder))[0]


def test_missing_and_empty_folders_are_problems(tmp_path: Path) -> None:
    assert "there is no such folder" in messages(check_folder(tmp_path / "nowhere"))[0]
    (tmp_path / "empty").mkdir()
    assert "has no image" in messages(check_folder(tmp_path / "empty"))[0]


def test_likely_mistakes_are_warnings(folder: Path) -> None:
    Image.new("RGB", (64, 64), "white").save(folder / "small.png")
    Image.new("RGB", (4000, 600), "grey").save(folder / "wide.png")
    Image.new("RGBA", (512, 512), (0, 0, 0, 10)).save(folder / "clear.png")
    Image.new("RGB", (512, 512), "red").save(folder / "twin.png")
    for name in ("small", "wide", "clear", "twin"):
        (folder / f"{name}.txt").write_text(name, "utf-8")
    report = check_folder(folder, train_batch_size=8)
    assert messages(report) == []
    for part in (
        "small.png: is 64x64, smaller than 512x512; it is upscaled",
        "wide.png: keeps only 15% of its 4000x600 when cropped to 512x512",
        "clear.png: is partly transparent",
        "a.png: is the same image as twin.png",
        "7 images, fewer than train_batch_size (8)",
    ):
        assert any(part in line for line in warned(report)), part


def save(folder: Path, name: str, image: Image.Image, **options: Any) -> None:
    image.save(folder / name, **options)
    (folder / name).with_suffix(".txt").write_text(name, "utf-8")


def test_losses_of_the_conversion_are_warnings(folder: Path) -> None:
    gradient = Image.linear_gradient("L").resize((512, 512))
    save(folder, "cmyk.jpg", gradient.convert("RGB").convert("CMYK"))
    save(folder, "deep.png", gradient.convert("I").point(lambda v: v * 257).convert("I;16"))
    save(folder, "few.png", gradient.convert("P"))
    frames = [gradient.convert("RGB"), gradient.convert("RGB").rotate(90)]
    save(folder, "moving.webp", frames[0], save_all=True, append_images=frames[1:])
    save(folder, "lying.png", gradient.convert("RGB"), format="JPEG")
    report = check_folder(folder)
    assert messages(report) == []
    for part in (
        "cmyk.jpg: is CMYK",
        "deep.png: has 16 bits a channel",
        "few.png: has at most 256 colors",
        "moving.webp: is animated; only the first of 2 frames is used",
        "lying.png: is a JPEG image; it is read as one; rename it",
    ):
        assert any(part in line for line in warned(report)), part


def test_an_image_of_extreme_shape_is_refused(folder: Path) -> None:
    save(folder, "thin.png", Image.new("RGB", (16384, 1)))
    save(folder, "long.png", Image.new("RGB", (2000, 100)))
    assert messages(check_folder(folder)) == [
        "thin.png: is 16384x1: one side is over 20 times the other; "
        "crop it to what its caption describes"
    ]


def test_transparency_and_colors_are_judged_by_their_values(folder: Path) -> None:
    gradient = Image.linear_gradient("L").resize((512, 512))
    save(folder, "opaque.png", gradient.convert("RGBA"))
    save(folder, "clear.png", Image.new("RGBA", (512, 512), (1, 2, 3, 0)))
    save(folder, "p3.png", gradient.convert("RGB").rotate(90), icc_profile=DISPLAY_P3)
    save(folder, "damaged.png", gradient.convert("RGB").rotate(180), icc_profile=b"damaged")
    report = check_folder(folder)
    assert (messages(report), warned(report)) == (
        [],
        [
            "clear.png: is entirely transparent; only a white background is left; "
            "save it without transparency",
            "damaged.png: has a color profile that is damaged, or too large; its colors may change;"
            " save it in sRGB",
        ],
    )


def test_near_duplicates_are_warnings(folder: Path) -> None:
    gradient = Image.radial_gradient("L").convert("RGB")
    save(folder, "one.png", gradient.resize((600, 600)))
    save(folder, "other.jpg", gradient.resize((512, 512)), quality=70)
    [warning] = warned(check_folder(folder))
    assert warning == (
        "one.png: looks the same as other.jpg (600x600 and 512x512); keep the better one"
    )


def test_sizes_smaller_than_a_batch_are_a_warning(folder: Path) -> None:
    Image.new("RGB", (512, 1024), "white").save(folder / "tall.png")
    (folder / "tall.txt").write_text("tall", "utf-8")
    buckets = {"target_resolution": 512, "start_dim": 256, "end_dim": 1024, "divisible_by": 64}
    report = check_folder(folder, train_batch_size=2, data_loader__aspect_ratio_buckets=buckets)
    [warning] = warned(report)
    assert "1 of 2 sizes have fewer images than train_batch_size (2)" in warning
    assert report.document()["buckets"] == {"320x704": 1, "512x512": 3}


EPOCHS = {"max_train_steps": None, "save_every_n_steps": None, "save_every_n_epochs": 1}


def test_a_run_in_epochs_is_checked_once_its_images_are_counted(folder: Path) -> None:
    report = check_folder(folder, **EPOCHS, max_train_epochs=3)
    [finding] = report.document()["findings"]
    assert finding["file"] == "training"
    assert finding["message"] == (
        "lr_warmup_steps (10) is not below max_train_epochs (3; in steps: 9): the learning rate "
        "never gets to its full value"
    )
    assert warned(check_folder(folder, **EPOCHS, max_train_epochs=4)) == []
    (folder / "a.txt").unlink()
    assert warned(check_folder(folder, **EPOCHS, max_train_epochs=2)) == []


def test_truncated_captions_are_warnings(folder: Path) -> None:
    def words(text: str) -> int:
        return len(text.split())

    (folder / "a.txt").write_text("one two three four five six", "utf-8")
    limits = [
        TokenLimit("CLIP", 3, words, is_last=False),
        TokenLimit("T5", 5, words, is_last=True),
    ]
    dataset = {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": str(folder)}
    values = {"data_loader__dataset": dataset, "data_loader__caption_prefix": "so"}
    config = parse_job(with_values(**values)).training
    report = check_local(config, limits)
    assert warned(report) == [
        f"{folder}: 3 captions have more than the 3 tokens that CLIP reads; "
        "the other encoder reads more of them",
        "a.png: has a caption of 7 tokens; T5 reads 5; put what matters first, or shorten it",
    ]


def test_token_counts_include_the_trigger_word(folder: Path) -> None:
    (folder / "a.txt").write_text("one two ohwx", "utf-8")
    limits = [TokenLimit("T5", 3, lambda text: len(text.split()), is_last=True)]
    dataset = {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": str(folder)}
    config = parse_job(with_values(data_loader__dataset=dataset, trigger_word="ohwx")).training
    (folder / "b.txt").write_text("one two three", "utf-8")
    (folder / "c.txt").write_text("OHWX two three", "utf-8")
    assert warned(check_local(config, limits)) == [
        "b.jpg: has a caption of 4 tokens; T5 reads 3; put what matters first, or shorten it"
    ]


def test_the_report_has_severity_file_and_remedy(folder: Path) -> None:
    (folder / "a.txt").unlink()
    (folder / "z.txt").write_text("nothing", "utf-8")
    assert check_folder(folder).document() == {
        "images": 2,
        "buckets": {"512x512": 2},
        "findings": [
            {
                "severity": "error",
                "file": "a.png",
                "message": "has no caption",
                "remedy": "write it into a.txt",
            },
            {
                "severity": "warning",
                "file": "z.txt",
                "message": "belongs to no image; it is not used",
                "remedy": "",
            },
        ],
    }


def test_a_jsonl_names_images_and_captions_by_its_columns(folder: Path) -> None:
    report = check_jsonl(
        folder / "data.jsonl",
        {"file": "a.png", "says": "red"},
        {"file": "b.jpg", "says": "green"},
        image_column="file",
        caption_column="says",
    )
    assert messages(report) == []
    assert [sample.caption for sample in report.samples] == ["red", "green"]


def test_every_invalid_line_is_reported(folder: Path) -> None:
    report = check_jsonl(
        folder / "data.jsonl",
        "{no json",
        "[1]",
        {"image": "a.png"},
        {"image": 3, "text": "x"},
        {"image": "missing.png", "text": "x"},
        {"image": "a.png", "text": ""},
    )
    assert len(messages(report)) == 6
    assert all(f"line {n}" in line for n, line in enumerate(messages(report), start=1))


def test_a_jsonl_cannot_name_files_outside_its_folder(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    (folder / "link.png").symlink_to(secret)
    names = ["../secret.png", str(secret), "link.png", "a/../../secret.png", "a\0.png"]
    report = check_jsonl(folder / "data.jsonl", *({"image": n, "text": "x"} for n in names))
    assert len(messages(report)) == len(names)
    assert report.samples == []


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store((tmp_path / "store").as_uri())


def test_the_store_holds_images_and_samples_by_their_digests(folder: Path, store: Store) -> None:
    report = check_folder(folder)
    dataset = ingest(report, store)
    assert Dataset.model_validate_json(store.get(dataset_key(dataset.digest))) == dataset
    by_source = {sample.source: sample for sample in dataset.samples}
    for name in ("a.png", "b.jpg", "c.webp"):
        assert store.get(image_key(by_source[name].image)) == (folder / name).read_bytes()


def test_the_digest_does_not_depend_on_the_source(
    folder: Path, store: Store, tmp_path: Path
) -> None:
    digest = ingest(check_folder(folder), store).digest
    other = tmp_path / "other"
    other.mkdir()
    rows = []
    for number, name in enumerate(("c.webp", "a.png", "b.jpg")):
        Image.open(folder / name).convert("RGB").save(other / f"{number}.bmp")
        caption = (folder / name).with_suffix(".txt").read_text("utf-8").strip()
        rows.append({"image": f"{number}.bmp", "text": caption})
    moved = check_jsonl(other / "list.jsonl", *rows)
    assert dataset_of(moved.samples).digest == digest
    (folder / "a.txt").write_text("another caption", "utf-8")
    assert dataset_of(check_folder(folder).samples).digest != digest


def test_an_image_that_changes_after_its_check_fails(folder: Path, store: Store) -> None:
    report = check_folder(folder)
    Image.new("RGB", (512, 512), "black").save(folder / "a.png")
    with pytest.raises(DatasetError, match=r"a\.png: changed after it was checked"):
        ingest(report, store)
    assert store.keys("datasets") == []


def sdxl(loader: dict[str, Any], **values: Any) -> Any:
    """An SDXL config over a data loader; a textual inversion where that is one."""
    kind = "SDXL_LORA"
    if loader["type"] == "TEXTUAL_INVERSION_SD_DATA_LOADER":
        kind = "SDXL_TEXTUAL_INVERSION"
        values |= {"placeholder_token": "<thing>", "initializer_token": "cat"}
    base = {"type": kind, "max_train_steps": 1, "save_every_n_steps": 1, "train_batch_size": 1}
    return parse_job({"training": {**base, "data_loader": loader, **values}}).training


def dreambooth(instance: Path, others: Path | None = None) -> Any:
    loader: dict[str, Any] = {
        "type": "DREAMBOOTH_SD_DATA_LOADER",
        "instance_caption": "a sks cat",
        "instance_dataset": {"type": "IMAGE_DIR_DATASET", "dataset_dir": str(instance)},
    }
    if others is not None:
        loader["class_caption"] = "a cat"
        loader["class_dataset"] = {"type": "IMAGE_DIR_DATASET", "dataset_dir": str(others)}
    return sdxl(loader)


def test_a_folder_of_images_alone_needs_no_captions(folder: Path) -> None:
    for caption in folder.glob("*.txt"):
        caption.unlink()
    report = check_local(dreambooth(folder))
    assert messages(report) == []
    assert [sample.caption for sample in report.samples] == ["", "", ""]


def test_the_smaller_dataset_is_repeated_evenly(folder: Path, tmp_path: Path) -> None:
    others = tmp_path / "others"
    others.mkdir()
    for number in range(7):
        Image.new("RGB", (512, 512), (number, 9, 9)).save(others / f"{number}.png")
    (others / "broken.png").write_bytes(b"no image")
    report = check_local(dreambooth(folder, others))
    # With two folders, a fault says in which.
    assert messages(report)[0].startswith("others/broken.png: ")
    (others / "broken.png").unlink()
    report = check_local(dreambooth(folder, others))
    assert len(report.samples) == 10
    assert warned(report) == [f"{it}.txt: is a caption; this job uses none" for it in "abc"]
    store = Store(f"file://{tmp_path}/store")
    parts: dict[int, list[str]] = {0: [], 1: []}
    for sample in ingest(report, store).samples:
        parts[sample.part].append(sample.image)
    assert len(parts[0]) == len(parts[1]) == len(set(parts[1])) == 7
    assert sorted(parts[0].count(image) for image in set(parts[0])) == [2, 2, 3]


def test_unused_captions_are_not_required(folder: Path) -> None:
    (folder / "a.txt").unlink()
    (folder / "b.txt").write_text("", "utf-8")
    loader = {
        "type": "TEXTUAL_INVERSION_SD_DATA_LOADER",
        "caption_preset": "style",
        "dataset": {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": str(folder)},
    }
    assert messages(check_local(sdxl(loader))) == []
    assert len(messages(check_local(sdxl({**loader, "keep_original_captions": True})))) == 2


def test_a_placeholder_in_a_caption_is_a_warning(folder: Path) -> None:
    (folder / "a.txt").write_text("a red <thing>", "utf-8")
    loader = {
        "type": "TEXTUAL_INVERSION_SD_DATA_LOADER",
        "caption_preset": "object",
        "keep_original_captions": True,
        "dataset": {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": str(folder)},
    }
    [warning] = warned(check_local(sdxl(loader)))
    assert warning.startswith("a.png: has the placeholder token '<thing>'")


def masked(folder: Path, center_crop: bool = True, **columns: Any) -> Report:
    """What is found in a.png with this mask in its row, and b.jpg without."""
    rows = [{"image": "a.png", "text": "red", **columns}, {"image": "b.jpg", "text": "green"}]
    return masked_rows(folder, rows, center_crop)


def masked_rows(folder: Path, rows: list[dict[str, Any]], center_crop: bool = True) -> Report:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    dataset = {"type": "IMAGE_CAPTION_JSONL_DATASET", "jsonl_path": str(path)}
    loader = {"type": "IMAGE_CAPTION_SD_DATA_LOADER", "dataset": dataset}
    return check_local(sdxl({**loader, "center_crop": center_crop}, use_masks=True))


def test_a_mask_is_stored_by_its_gray_pixels(folder: Path, tmp_path: Path) -> None:
    mask = Image.new("L", (512, 512), 0)
    mask.paste(200, (0, 0, 256, 512))
    mask.save(folder / "mask.png")
    report = masked(folder, mask="mask.png")
    assert messages(report) == []
    digests = [sample.mask for sample in report.samples]
    assert digests[0] is not None
    assert digests[1] is None
    store = Store(f"file://{tmp_path}/store")
    plain = masked(folder)
    assert ingest(report, store).digest != ingest(plain, store).digest
    assert store.get(image_key(digests[0])) == (folder / "mask.png").read_bytes()
    assert any("no row has a mask" in warning for warning in warned(plain))


def mask_of(box: tuple[int, int, int, int], value: Any = 255, mode: str = "L") -> Image.Image:
    mask = Image.new(mode, (512, 512))
    mask.paste(value, box)
    return mask


def test_masks_are_reported_by_what_they_cover(folder: Path) -> None:
    mask_of((0, 0, 256, 512)).save(folder / "mask.png")
    report = masked(folder, mask="mask.png")
    location = folder / "rows.jsonl"
    assert (messages(report), warned(report)[-2:]) == (
        [],
        [
            f"{location}: 1 of 2 rows has no mask, the first is rows.jsonl line 2 (b.jpg); without "
            "one, all of an image is trained; check the column's name, or give all a mask",
            f"{location}: masks cover 50.0% of what is trained",
        ],
    )


def test_unusual_masks_are_warnings(folder: Path) -> None:
    unusual = {
        "ones.png": mask_of((0, 0, 256, 512), 1),
        "red.png": mask_of((0, 0, 256, 512), "red", "RGB"),
        "tiny.png": mask_of((0, 0, 40, 40)),
    }
    for name, mask in unusual.items():
        mask.save(folder / name)
    rows = [{"image": "a.png", "text": "red", "mask": name} for name in unusual]
    report = masked_rows(folder, rows)
    assert messages(report) == []
    assert [line for line in warned(report) if "has a mask" in line] == [
        "rows.jsonl line 1 (a.png): has a mask whose brightest value is 1 of 255; "
        "write 255 where the image counts fully",
        "rows.jsonl line 2 (a.png): has a mask in color; its luminance is used; "
        "save it in gray, white where the image counts",
        "rows.jsonl line 3 (a.png): has a mask that covers less than 1% of what is trained; "
        "check that white is where the image counts",
    ]


def test_a_cut_out_is_the_mask_of_its_subject(folder: Path) -> None:
    cut_out = Image.new("RGBA", (512, 512), (255, 255, 255, 0))
    cut_out.paste((9, 9, 9, 255), (128, 128, 384, 384))
    cut_out.save(folder / "mask.png")
    assert warned(masked(folder, mask="mask.png"))[-1].endswith(
        "masks cover 25.0% of what is trained; 1 of 1 are alpha channels"
    )


@pytest.mark.parametrize("center_crop", [True, False])
def test_a_mask_that_the_crop_cuts_off_is_a_problem(folder: Path, center_crop: bool) -> None:
    Image.new("RGB", (1024, 512), "red").save(folder / "a.png")
    mask = Image.new("L", (1024, 512))
    mask.paste(255, (0, 0, 40, 512))
    mask.save(folder / "mask.png")
    report = masked(folder, center_crop, mask="mask.png")
    if center_crop:
        assert messages(report) == [
            "rows.jsonl line 1 (a.png): has a mask that is all black when cropped to "
            "512x512: no pixel would be trained; replace it or leave it out"
        ]
    else:
        # Some crops show it.
        assert messages(report) == []


def test_a_mask_that_vanishes_in_the_training_size_is_a_problem(folder: Path) -> None:
    Image.new("RGB", (4096, 4096), "red").save(folder / "a.png")
    mask = Image.new("L", (4096, 4096))
    mask.putpixel((2000, 2000), 30)
    mask.save(folder / "mask.png")
    [problem] = messages(masked(folder, mask="mask.png"))
    assert "that is all black when cropped to 512x512" in problem


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda f: Image.new("L", (512, 511), 9).save(f / "mask.png"), "of another size: 512x511"),
        (lambda f: Image.new("L", (512, 512), 0).save(f / "mask.png"), "is all black"),
        (lambda f: (f / "mask.png").write_bytes(b"none"), "has a mask that is not a JPEG"),
        (lambda f: None, "there is no image mask.png"),
    ],
)
def test_an_unusable_mask_is_reported_by_its_image(
    folder: Path, make: Callable[[Path], Any], said: str
) -> None:
    make(folder)
    report = masked(folder, mask="mask.png")
    [problem] = messages(report)
    assert "a.png" in problem or "line 1" in problem
    assert said in problem
    unexpected = ("a.png: is named by no row", "no row has a mask")
    assert not [it for it in warned(report) if any(text in it for text in unexpected)]


@pytest.mark.parametrize("mask", ["../mask.png", "/etc/passwd", 3, ["mask.png"], "\ud800"])
def test_a_hostile_mask_is_refused(folder: Path, mask: Any) -> None:
    Image.new("L", (512, 512), 9).save(folder.parent / "mask.png")
    [problem] = messages(masked(folder, mask=mask))
    assert "line 1" in problem
