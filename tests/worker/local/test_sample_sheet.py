from pathlib import Path

from PIL import Image

from worker.local.sample_sheet import write_sample_sheet

_COLORS = {"000000-1-1": "red", "000000-2-1": "green", "000050-1-1": "blue", "000050-2-1": "black"}


def test_a_sheet_has_a_row_for_each_sample_and_a_column_for_each_step(tmp_path: Path) -> None:
    folder = tmp_path / "validation"
    folder.mkdir()
    for name, color in _COLORS.items():
        Image.new("RGB", (32, 32), color).save(folder / f"validation-{name}.png")
    (folder / "grid.html").write_text("another file", "utf-8")
    write_sample_sheet(folder, tmp_path / "sheet.png")
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.size == (82, 94)
    seen = [sheet.getpixel((x, y)) for y in (34, 72) for x in (22, 60)]
    assert seen == [(255, 0, 0), (0, 0, 255), (0, 128, 0), (0, 0, 0)]


def test_a_sheet_of_a_run_without_all_samples_leaves_gaps(tmp_path: Path) -> None:
    folder = tmp_path / "validation"
    folder.mkdir()
    for name in ("000000-1-1", "000000-2-1", "000050-2-1"):
        Image.new("RGB", (32, 32), "red").save(folder / f"validation-{name}.png")
    write_sample_sheet(folder, tmp_path / "sheet.png")
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.getpixel((60, 34)) == (255, 255, 255)
    assert sheet.getpixel((60, 72)) == (255, 0, 0)
