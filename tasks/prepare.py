"""The ``prepare`` stage: check the base model and every image and caption, store the data set."""

from tasks.stage import StageContext, StageResult


def prepare(context: StageContext) -> StageResult:
    """Check all that later stages need, before any GPU is used.

    Raises:
        BaseModelError: With every fault of the base model.
        DataSetError: With every fault of the data set.
    """
    raise NotImplementedError
