import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tasks.captions.requests import CaptionModel
from tasks.errors import ErrorCode
from tasks.events import CaptionDone, CaptionWritten, Event
from tasks.stages.trainer_protocol import CaptionImage, CaptionRequest
from tasks.store import Store
from tests.worker.trainer.caption_models import build_blip, build_florence2
from worker.trainer import caption
from worker.trainer.caption import MAX_CAPTION, CaptionModelError, plain
from worker.trainer.errors import InterruptedRun
from worker.trainer.event_pipe import StopSwitch
from worker.trainer.model_cache import ModelCache


@pytest.fixture(scope="session")
def florence2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_florence2(tmp_path_factory.mktemp("caption") / "florence2")


@pytest.fixture(scope="session")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_blip(tmp_path_factory.mktemp("caption") / "blip")


def drawn(folder: Path, colors: Iterable[str]) -> tuple[CaptionImage, ...]:
    images = []
    for color in colors:
        path = folder / f"{color}.jpg"
        Image.new("RGB", (96, 64), color).save(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        images.append(CaptionImage(name=f"{color}.png", path=str(path), sha256=digest))
    return tuple(images)


def request_for(tmp_path: Path, model: Path, **fields: Any) -> CaptionRequest:
    values = {
        "job_id": "run",
        "model": CaptionModel(model=str(model), max_tokens=12),
        "style": "detailed",
        "images": drawn(tmp_path, ("red", "blue")),
        "store_url": (tmp_path / "store").as_uri(),
        "device": "cpu",
        "limit_gib": None,
    }
    return CaptionRequest.model_validate(values | fields)


def run(request: CaptionRequest, stop: StopSwitch | None = None) -> dict[str, str]:
    """Carry out a request and return its captions."""
    events: list[Event] = []
    caption.run(request, events.append, stop or StopSwitch(), ModelCache())
    assert isinstance(events[-1], CaptionDone)
    return {it.name: it.text for it in events if isinstance(it, CaptionWritten)}


@pytest.mark.parametrize("kind", ["florence2", "blip"])
def test_captions_are_written_once_and_always_alike(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Path = request.getfixturevalue(kind)
    asked = request_for(tmp_path, model)
    captions = run(asked)
    assert captions.keys() == {"red.png", "blue.png"}
    assert all(text and text.isprintable() for text in captions.values())
    elsewhere = asked.model_copy(update={"store_url": (tmp_path / "other").as_uri()})
    assert run(elsewhere) == captions
    # What is in the store needs no model.
    monkeypatch.setattr(caption._Captioner, "write", None)
    assert run(asked) == captions


def test_what_decides_a_caption_decides_its_key(tmp_path: Path, florence2: Path) -> None:
    asked = request_for(tmp_path, florence2)
    store = Store(asked.store_url)
    run(asked)
    assert len(store.keys("captions")) == 2
    run(asked.model_copy(update={"style": "short"}))
    run(asked.model_copy(update={"model": asked.model.model_copy(update={"max_tokens": 9})}))
    other = build_florence2(tmp_path / "other", seed=1)
    run(asked.model_copy(update={"model": CaptionModel(model=str(other), max_tokens=12)}))
    assert len(store.keys("captions")) == 8


def test_request_to_stop_ends_between_images(tmp_path: Path, florence2: Path) -> None:
    stop = StopSwitch()
    stop.is_set = True
    with pytest.raises(InterruptedRun):
        run(request_for(tmp_path, florence2), stop)


def test_model_that_does_not_fit_is_refused_before_it_is_loaded(
    tmp_path: Path, florence2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caption._Captioner, "_load", None)
    with pytest.raises(CaptionModelError, match="TRAINING_CAPTION_CLASS") as refused:
        run(request_for(tmp_path, florence2, limit_gib=1.0))
    assert refused.value.code == ErrorCode.DOES_NOT_FIT


def test_model_of_another_type_is_refused(tmp_path: Path, florence2: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in florence2.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {"model_type": "evil", "auto_map": {"AutoModel": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    (folder / "evil.py").write_text("raise SystemExit('ran')", "utf-8")
    with pytest.raises(CaptionModelError, match="its type is 'evil'"):
        run(request_for(tmp_path, folder))


def test_pickled_weights_are_refused(tmp_path: Path, florence2: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "processor_config.json"):
        (folder / name).write_bytes((florence2 / name).read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(CaptionModelError, match=r"the caption model .*pickled weights"):
        run(request_for(tmp_path, folder))


def test_captions_are_one_bounded_line() -> None:
    assert plain(" a\tcat\n\non \x1b[31m a\u202e mat ") == "a cat on [31m a mat"
    assert len(plain("cat " * MAX_CAPTION)) <= MAX_CAPTION
    assert plain("\ufffd\x00") == ""
