"""Open drafts: kept for a day, so that a reloaded page shows them, whichever console serves it."""

import json
import re
import secrets
import shutil
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from redis import Redis

from console.errors import TooLargeError
from console.pages.form.draft import Draft
from console.services.images.dataset_checks import results_of
from console.services.images.image_collection import ImageCollection
from console.services.keys import DRAFTS_PREFIX
from console.services.shared_values import SharedValues, available
from console.services.shares import AccountCache
from console.views import DatasetView
from tasks.access.api_keys import Caller

# Of an account; its least recently used one is closed first.
_MAX_DRAFTS = 20
_TTL_S = 86_400
# What users type; images are files.
_MAX_BYTES = 2**18
_CLEANING_INTERVAL_S = 3600.0
_ID = re.compile(r"[0-9a-f]{24}")
# Sizes of the largest draft that all drafts of an account may take together.
_MAX_SIZES = 2
# Those that are offered; the others are older.
_MAX_BEGUN = 3


@dataclass(frozen=True)
class ShownImage:
    """An image of a draft, as the form shows it.

    Attributes:
        name: Its file name.
        caption: Its caption; None without one.
        key: Names its thumbnail.
        error: Why it cannot be read; empty if it can.
        has_thumbnail: Whether its thumbnail was made.
    """

    name: str
    caption: str | None
    key: str
    error: str = ""
    has_thumbnail: bool = False


@dataclass
class OpenDraft:
    """A draft with its images.

    Attributes:
        id: Its id.
        caller: The caller who opened it.
        draft: What the caller filled in.
        collection: The images.
        first: What the form began with.
        dataset_id: The saved dataset that is edited; empty for a job.
        images: The images, as they are shown.
        errors: Why images cannot be read, by the key of their thumbnail.
        report: Report on the images; None until they are checked.
        faults: Severity and message of the worst finding about each file.
        lacks_captions: Whether a job needs captions that are missing.
        sizes: Images per training size.
        checked: The options and changes that the report is about.
        changes: Number of changes of the images and captions.
        revision: Names the state in the broker that it was read from, or saved as.
        is_closed: Whether it was closed: what still runs for its page saves nothing.
    """

    id: str
    caller: Caller
    draft: Draft
    collection: ImageCollection
    first: dict[str, Any]
    dataset_id: str = ""
    images: tuple[ShownImage, ...] = ()
    errors: dict[str, str] = field(default_factory=dict)
    report: DatasetView | None = None
    faults: dict[str, tuple[str, str]] = field(default_factory=dict)
    lacks_captions: bool = False
    sizes: list[int] | None = None
    checked: tuple[str, int] | None = None
    changes: int = 0
    revision: str = ""
    is_closed: bool = False

    @property
    def thumbnails(self) -> Path:
        """Folder of the thumbnails."""
        return self.collection.scratch / f"{self.id}.thumbnails"

    @property
    def is_begun(self) -> bool:
        """Whether the caller filled in anything, or added images."""
        return self.draft.state() != self.first or not self.collection.is_empty


@dataclass(frozen=True)
class BegunDraft:
    """A draft that a caller may continue.

    Attributes:
        id: Its id.
        name: The name of its job.
        training_type: The type of its job.
        images: The number of its images.
        saved_at: When it was changed.
    """

    id: str
    name: str
    training_type: str
    images: int
    saved_at: datetime


class Drafts:
    """The open drafts of all callers, which any console of a broker continues. Methods block.

    What callers filled in is in the broker, added images are in a folder that consoles share.
    Reports are made again where a draft was not opened before.

    Args:
        client: A connection to the broker.
        folder: Folder of added images until they are uploaded.
        max_bytes: Maximum size of a draft's images; all drafts of an account may have twice that.

    Raises:
        UnavailableError: From every method, when the broker is unavailable.
    """

    def __init__(self, client: Redis, folder: Path, max_bytes: int) -> None:
        self._values = SharedValues(client, DRAFTS_PREFIX, _MAX_DRAFTS, _TTL_S)
        self._folder, self._max_bytes = folder, max_bytes
        # With images and reports, which are costly to make.
        self._open: AccountCache[OpenDraft] = AccountCache(_MAX_DRAFTS)
        self._cleaned_at = -_CLEANING_INTERVAL_S

    def open(self, caller: Caller, draft: Draft, dataset_id: str = "") -> str:
        """Open a draft and return its id, which is random."""
        self._remove_expired_images()
        self._make_room(caller.account)
        draft_id = secrets.token_hex(12)
        collection = self._collection(caller.account, draft_id)
        first = json.loads(json.dumps(draft.state()))
        opened = OpenDraft(draft_id, caller, draft, collection, first, dataset_id)
        self.save(opened)
        self._open.add(caller.account, draft_id, opened)
        return draft_id

    def find(self, caller: Caller, draft_id: str) -> OpenDraft | None:
        """Return a caller's draft; None if the caller has none of this id."""
        with available():
            stored = self._values.get(draft_id) if _ID.fullmatch(draft_id) else None
        if stored is None or not _is_of(caller, stored):
            return None
        stored = _with_defaults(stored)
        opened = self._open.get(draft_id)
        if opened is not None and opened.revision == stored["revision"]:
            return opened
        draft = Draft.restored(stored["draft"])
        if draft is None:
            return None
        opened = OpenDraft(
            draft_id,
            caller,
            draft,
            self._collection(caller.account, draft_id),
            stored["first"],
            stored["dataset_id"],
            revision=stored["revision"],
        )
        self._open.pop(draft_id)
        self._open.add(caller.account, draft_id, opened)
        return opened

    def edit_of(self, caller: Caller, dataset_id: str, archive: str) -> str | None:
        """Return the id of a caller's draft that edits a saved dataset; None without one.

        Args:
            caller: The caller.
            dataset_id: The dataset.
            archive: What the dataset has now: a draft of other images is not continued.
        """
        for draft_id, stored in self._stored(caller.account).items():
            is_edit = _is_of(caller, stored) and stored["dataset_id"] == dataset_id
            dataset = stored["first"]["dataset"] or {}
            if is_edit and dataset.get("archive", "") == archive:
                return draft_id
        return None

    def begun(self, caller: Caller) -> list[BegunDraft]:
        """Return the jobs that a caller began to fill in, the latest first."""
        found = []
        for draft_id, stored in self._stored(caller.account).items():
            if not _is_of(caller, stored) or stored["dataset_id"]:
                continue
            state = stored["draft"]
            images = len(self._collection(caller.account, draft_id).names())
            if images or state != stored["first"]:
                saved_at = datetime.fromtimestamp(stored["saved_at"], UTC)
                name, training_type = state["name"], state["training_type"]
                found.append(BegunDraft(draft_id, name, training_type, images, saved_at))
        return sorted(found, key=lambda draft: draft.saved_at, reverse=True)[:_MAX_BEGUN]

    def save(self, opened: OpenDraft) -> None:
        """Keep what the caller has filled in so far, unless the draft is closed.

        Raises:
            TooLargeError: It is too large.
        """
        if opened.is_closed:
            return
        revision = secrets.token_hex(8)
        value = {
            "key": opened.caller.name,
            "draft": opened.draft.state(),
            "first": opened.first,
            "dataset_id": opened.dataset_id,
            "saved_at": time.time(),
            "revision": revision,
        }
        if len(json.dumps(value)) > _MAX_BYTES:
            raise TooLargeError(f"a form has at most {_MAX_BYTES:,} bytes; shorten its texts")
        account = opened.caller.account
        with available():
            displaced = self._values.put(account, opened.id, value)
        opened.revision = revision
        for draft_id in displaced:
            self._forget(account, draft_id)

    def close(self, opened: OpenDraft) -> None:
        """Close a draft that was submitted, saved or discarded."""
        opened.is_closed = True
        with available():
            self._values.remove(opened.id)
        self._forget(opened.caller.account, opened.id)

    def _make_room(self, account: str) -> None:
        """Close a draft without any content, before one that a user filled in is displaced."""
        stored = self._stored(account)
        for draft_id, value in stored.items():
            if len(stored) < _MAX_DRAFTS:
                return
            is_empty = self._collection(account, draft_id).is_empty
            if value["draft"] == value["first"] and is_empty:
                with available():
                    self._values.remove(draft_id)
                self._forget(account, draft_id)
                return

    def _stored(self, account: str) -> dict[str, dict[str, Any]]:
        with available():
            values = self._values.all(account)
        return {draft_id: _with_defaults(value) for draft_id, value in values.items()}

    def _forget(self, account: str, draft_id: str) -> None:
        opened = self._open.pop(draft_id)
        collection = opened.collection if opened else self._collection(account, draft_id)
        collection.clear()
        shutil.rmtree(collection.scratch / f"{draft_id}.thumbnails", ignore_errors=True)
        shutil.rmtree(results_of(collection.folder), ignore_errors=True)

    def _collection(self, account: str, draft_id: str) -> ImageCollection:
        return ImageCollection(
            self._folder, draft_id, self._max_bytes, lambda: self._free_bytes(account)
        )

    def _free_bytes(self, account: str) -> int:
        with available():
            draft_ids = self._values.ids(account)
        used = sum(
            ImageCollection(self._folder, draft_id, self._max_bytes).size for draft_id in draft_ids
        )
        return _MAX_SIZES * self._max_bytes - used

    def _remove_expired_images(self) -> None:
        """Remove the images of drafts that have expired, and files of killed consoles."""
        now = time.monotonic()
        if now - self._cleaned_at < _CLEANING_INTERVAL_S or not self._folder.is_dir():
            return
        self._cleaned_at = now
        # Some are not in the broker yet.
        old = [path for path in self._folder.iterdir() if _age_s(path) > _CLEANING_INTERVAL_S]
        with available():
            existing = self._values.existing([path.stem for path in old])
        for path in old:
            if path.stem in existing:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _with_defaults(stored: dict[str, Any]) -> dict[str, Any]:
    """Return a stored draft with what an earlier version did not store."""
    return {"first": stored["draft"], "dataset_id": "", "saved_at": 0.0, **stored}


def _is_of(caller: Caller, stored: dict[str, Any]) -> bool:
    return [stored["account"], stored["key"]] == [caller.account, caller.name]


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:  # another console has just removed it
        return 0.0
