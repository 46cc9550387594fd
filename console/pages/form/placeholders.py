"""Values for what a user has not filled in yet, so that memory and time can be estimated."""

from typing import Any

from console.pages.form.draft import Draft, set_at

# Never fetched.
_DATASET = {"type": "ARCHIVE", "archive": "https://example.org/images.zip"}
_STEPS = {"max_train_steps": 1000, "save_every_n_steps": 250}


def with_placeholders(draft: Draft, *, only_dataset: bool = False) -> dict[str, Any]:
    """Return a draft's job, with values for required options that are empty.

    Args:
        draft: The draft.
        only_dataset: Fill in the dataset only: problems of other options stay.
    """
    document = draft.document()
    if draft.dataset is None:
        set_at(document["training"], draft.dataset_path, dict(_DATASET))
    if only_dataset:
        return document
    has_start = any(draft.value(path) for path in _OTHER_STARTS)
    for path, word in _REQUIRED.items():
        if path == "initializer_token" and has_start:
            continue
        if draft.control(path) is not None and not draft.value(path):
            set_at(document["training"], path, word)
    for path, value in _STEPS.items():
        partner = path.replace("_steps", "_epochs")
        if draft.value(path) is None and draft.value(partner) is None:
            set_at(document["training"], path, value)
    return document


_OTHER_STARTS = ("initial_phrase", "initial_embedding_file")
_REQUIRED = {
    "placeholder_token": "<word>",
    "initializer_token": "word",
    "data_loader.caption_preset": "object",
    "data_loader.instance_caption": "an object",
}
"""Of each option that some training type or data loader requires."""
