"""What people are filling in, kept for a while: a page that is loaded anew shows it again."""

import secrets
import shutil
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from console.pages.form.draft import Draft
from console.pages.form.image_collection import Collection
from console.views import DatasetView, ImageView, UploadView
from tasks.api_keys import Caller

# Of all people together; the one that rested longest goes first.
_MOST = 200


@dataclass
class Begun:
    """A draft with its images.

    Attributes:
        caller: Whose it is.
        draft: What was filled in.
        collection: Images that were added.
        upload: The archive that was made of them; None until they are sent.
        listed: What is in it.
        checked: What was found in it; None until it is checked.
        checked_for: What of the job that rests on.
        is_own_upload: The upload was made for this draft; no job has it yet.
    """

    caller: Caller
    draft: Draft
    collection: Collection
    upload: UploadView | None = None
    listed: tuple[ImageView, ...] = ()
    checked: DatasetView | None = None
    checked_for: str = ""
    is_own_upload: bool = False


class Drafts:
    """The drafts of everybody.

    Args:
        scratch: Where images are kept until they are sent.
        most_bytes: The most that the images of one draft may take.
    """

    def __init__(self, scratch: Path, most_bytes: int) -> None:
        # What a console left that was killed; one process only has this folder.
        shutil.rmtree(scratch, ignore_errors=True)
        self._scratch, self._most_bytes = scratch, most_bytes
        self._begun: OrderedDict[str, Begun] = OrderedDict()

    def begin(self, caller: Caller, draft: Draft) -> str:
        """Keep a draft.

        Returns:
            Its id, which nobody guesses.
        """
        draft_id = secrets.token_urlsafe(12)
        collection = Collection(self._scratch, self._most_bytes)
        self._begun[draft_id] = Begun(caller, draft, collection)
        while len(self._begun) > _MOST:
            self._begun.popitem(last=False)[1].collection.clear()
        return draft_id

    def find(self, caller: Caller, draft_id: str) -> Begun | None:
        """An caller's draft; None where it has none of this id."""
        begun = self._begun.get(draft_id)
        if begun is None or begun.caller != caller:
            return None
        self._begun.move_to_end(draft_id)
        return begun

    def end(self, draft_id: str) -> None:
        """Forget a draft: its job is on its way."""
        begun = self._begun.pop(draft_id, None)
        if begun is not None:
            begun.collection.clear()

    def clear(self) -> None:
        """Forget all of them."""
        for draft_id in list(self._begun):
            self.end(draft_id)
