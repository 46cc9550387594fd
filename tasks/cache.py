"""The ``cache`` stage: text-encoder and VAE outputs of everything that is not cached yet."""

from tasks.events import CacheDone
from tasks.stage import StageContext, StageResult


def cache(context: StageContext) -> StageResult:
    """Encode what is missing and leave an index of the entries for ``train``."""
    done = context.runtime.trainer.run(
        context.trainer_request(stage="cache"),
        on_event=context.emit,
        stop_requested=context.stop_requested,
    )
    if not isinstance(done, CacheDone):
        raise TypeError(f"the trainer answered a cache request with {done.kind}")
    encoded = f"{done.encoded_images} images and {done.encoded_captions} captions encoded"
    reused = f"{done.reused_images} and {done.reused_captions} reused"
    return StageResult(f"{encoded}, {reused}", {"cache_index": done.index_key})
