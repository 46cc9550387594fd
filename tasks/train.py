"""The ``train`` stage: run the trainer, from the newest checkpoint where there is one."""

from tasks.events import CheckpointSaved, Event, TrainDone
from tasks.stage import StageContext, StageResult


def train(context: StageContext) -> StageResult:
    """Train, keeping the record's checkpoints up to date so that any start can go on."""
    refs = context.record.refs
    kept = checkpoints_of(refs)
    resumed_at = kept[-1].step if kept else 0
    limit = context.record.job.training.max_checkpoints

    def on_event(event: Event) -> None:
        if not isinstance(event, CheckpointSaved):
            context.emit(event)
            return
        kept.append(event)
        pruned = kept[:-limit] if limit else []
        del kept[: len(pruned)]
        lines = "\n".join(checkpoint.model_dump_json() for checkpoint in kept)
        context.runtime.state.set_refs(
            context.job_id, context.attempt, {"checkpoints": lines}, event
        )
        # Only now does nobody need the old ones any more.
        for old in pruned:
            context.runtime.store.delete([old.state_key, old.weights.key])

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
