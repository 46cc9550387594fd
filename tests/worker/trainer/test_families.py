"""The registry of training types."""

from typing import get_args

from tasks.jobs.job import TrainingConfig
from worker.trainer.families import TRAINING_TYPES
from worker.trainer.invoke.pipelines import PIPELINES


def test_trainer_knows_the_training_types_of_jobs() -> None:
    union, *_ = get_args(TrainingConfig)
    types = {config.model_fields["type"].default for config in get_args(union)}
    assert set(TRAINING_TYPES) == set(PIPELINES) == types
