"""The ``train`` stage: run the trainer, from the newest checkpoint where there is one."""

from collections.abc import Iterable

from tasks.events import CheckpointSaved, Event, TrainDone, ValidationImages
from tasks.jobs.base import StrictModel
from tasks.stage import StageContext, StageResult


def train(context: StageContext) -> StageResult:
    """Train, keeping what the record says of the run up to date so that any start can go on."""
    refs = context.record.refs
    kept = checkpoints_of(refs)
    made = {event.step: event for event in validations_of(refs)}
    resumed_at = kept[-1].step if kept else 0
    limit = context.record.job.training.max_checkpoints

    def on_event(event: Event) -> None:
        match event:
            case CheckpointSaved():
                checkpoint_saved(event)
            case ValidationImages():
                images_made(event)
            case _:
                context.emit(event)

    def checkpoint_saved(event: CheckpointSaved) -> None:
        kept.append(event)
        pruned = kept[:-limit] if limit else []
        del kept[: len(pruned)]
        record("checkpoints", kept, event)
        # Only now does nobody need the old ones any more.
        for old in pruned:
            context.runtime.store.delete([old.state_key, *(file.key for file in old.files)])

    def images_made(event: ValidationImages) -> None:
        replaced = made.get(event.step)
        made[event.step] = event
        record("validations", [made[step] for step in sorted(made)], event)
        if replaced is not None:
            # A trainer that was started again in the same attempt wrote over its own.
            new = {image.key for image in event.images}
            old = [image.key for image in replaced.images if image.key not in new]
            context.runtime.store.delete(old)

    def record(ref: str, models: Iterable[StrictModel], event: Event) -> None:
        lines = "\n".join(model.model_dump_json() for model in models)
        context.runtime.state.set_refs(context.job_id, context.attempt, {ref: lines}, event)

    done = context.runtime.trainer.run(
        context.trainer_request(
            stage="train",
            cache_index_key=refs["cache_index"],
            resume_state_key=kept[-1].state_key if kept else None,
        ),
        on_event=on_event,
        stop_requested=context.stop_requested,
    )
    if not isinstance(done, TrainDone):
        raise TypeError(f"the trainer answered a train request with {done.kind}")
    resumed = f", from step {resumed_at}" if resumed_at else ""
    return StageResult(
        f"{done.steps} steps, loss {done.final_loss:.4f}{resumed}",
        {"trained": done.model_dump_json()},
    )


def checkpoints_of(refs: dict[str, str]) -> list[CheckpointSaved]:
    """The checkpoints a record holds, oldest first."""
    lines = refs.get("checkpoints", "").splitlines()
    return [CheckpointSaved.model_validate_json(line) for line in lines]


def validations_of(refs: dict[str, str]) -> list[ValidationImages]:
    """The validation images a record holds, by step."""
    lines = refs.get("validations", "").splitlines()
    return [ValidationImages.model_validate_json(line) for line in lines]
