"""The errors that the trainer expects. Each becomes one ``failed`` event with its code.

RefusedError               the request cannot be carried out
├── VocabularyError        a tokenizer does not belong to its text encoder
├── TargetError            a LoRA target matches no layer of the model
├── PlaceholderError       a placeholder token, or its initial embedding, cannot be used
├── MissingLibraryError    an option needs a library that is not installed
├── CompileError           the option compile cannot be carried out
├── ImageError           an image of the dataset cannot be read
├── DamagedFileError       one of our files in the store is damaged or missing
├── StaleIndexError        the cache index belongs to another config or dataset
├── ForeignStateError      the training state belongs to another config or dataset
└── NotFiniteError         a result is NaN or infinity
    └── DivergedError      the loss or the weights are, at a step
InterruptedRun             the run was asked to stop, and stopped with everything saved
"""

from collections.abc import Sequence

from tasks.errors import ErrorCode
from tasks.escaping import listed


class RefusedError(Exception):
    """The request cannot be carried out; a retry would not help."""

    code = ErrorCode.TRAINER_FAILED


class VocabularyError(RefusedError):
    """A tokenizer does not belong to its text encoder."""

    code = ErrorCode.INVALID_MODEL

    def __init__(self, model: str, part: str, tokens: int, vocab_size: int) -> None:
        super().__init__(model, part, tokens, vocab_size)
        self.model, self.part, self.tokens, self.vocab_size = model, part, tokens, vocab_size

    def __str__(self) -> str:
        """Name both sizes, and the likely cause."""
        return (
            f"the base model {self.model} cannot be used: {self.part} has {self.tokens} tokens, "
            f"its text encoder expects about {self.vocab_size}; the folder's vocabulary files are "
            "missing or belong to another model"
        )


class TargetError(RefusedError):
    """A LoRA target matches no layer of the model."""

    code = ErrorCode.INVALID_MODEL

    def __init__(self, model: str, names: Sequence[str]) -> None:
        super().__init__(model, names)
        self.model, self.names = model, names

    def __str__(self) -> str:
        """Name the targets and the model."""
        return f"these LoRA targets match no layer of the {self.model}: {', '.join(self.names)}"


class PlaceholderError(RefusedError):
    """A placeholder token, or its initial embedding, cannot be used with the base model."""

    code = ErrorCode.INVALID_MODEL


class MissingLibraryError(RefusedError):
    """An option needs a library that is not installed on this worker."""

    def __init__(self, library: str) -> None:
        super().__init__(library)
        self.library = library

    def __str__(self) -> str:
        """Name the library and how to install it."""
        return (
            f"an option of the job needs {self.library}, which this worker lacks; install it with "
            "pip install 'training-worker[train,quantization]'"
        )


class CompileError(RefusedError):
    """The option ``compile`` cannot be carried out on this worker."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        """Name the option, the problem and what to do without it."""
        return f"the option compile cannot be used: {self.problem}; or set compile false"


class ImageError(RefusedError):
    """An image of the dataset cannot be read."""

    code = ErrorCode.INVALID_DATASET

    def __init__(self, source: str, problem: str) -> None:
        super().__init__(source, problem)
        self.source, self.message = source, problem

    def __str__(self) -> str:
        """Name the file and the problem."""
        return f"the image {self.source} cannot be read: {self.message}"


class DamagedFileError(RefusedError):
    """One of our files in the store is damaged or missing."""

    code = ErrorCode.UNREADABLE_FILE

    def __init__(self, what: str, key: str, problem: str, remedy: str) -> None:
        super().__init__(what, key, problem, remedy)
        self.what, self.key, self.message, self.remedy = what, key, problem, remedy

    def __str__(self) -> str:
        """Name the file, the problem and what to do."""
        return f"{self.what} {self.key} is damaged ({self.message}); {self.remedy}"


class StaleIndexError(RefusedError):
    """The cache index belongs to another config or dataset."""

    def __init__(self, key: str, differs: Sequence[str]) -> None:
        super().__init__(key, differs)
        self.key, self.differs = key, differs

    def __str__(self) -> str:
        """Name the differences, and what to do."""
        return (
            f"the cache index {self.key} was made for another {listed(self.differs)}; "
            "run the cache stage again"
        )


class ForeignStateError(RefusedError):
    """The training state belongs to another config or dataset."""

    def __init__(self, key: str, differs: Sequence[str]) -> None:
        super().__init__(key, differs)
        self.key, self.differs = key, differs

    def __str__(self) -> str:
        """Name the differences, and what to do."""
        return (
            f"the training state {self.key} is of another run: it differs in "
            f"{listed(self.differs)}; make these equal, or start without it"
        )


class NotFiniteError(RefusedError):
    """A result is NaN or infinity."""

    code = ErrorCode.DIVERGED

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(what, advice)
        self.what, self.advice = what, advice

    def __str__(self) -> str:
        """Name the result, and what to try."""
        return f"{self.what} is NaN or infinity; {self.advice}"


class DivergedError(NotFiniteError):
    """The loss or the weights are NaN or infinity at a step."""

    def __init__(self, what: str, step: int, sources: Sequence[str], advice: str) -> None:
        files = f" on {listed(sources)}" if sources else ""
        super().__init__(f"{what} of step {step}{files}", advice)
        self.step, self.sources = step, tuple(sources)


class InterruptedRun(Exception):  # noqa: N818 - an outcome, not an error
    """The run was asked to stop, and stopped with everything saved."""
