"""What people may change of a job that is recorded: what they call it, and write about it."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from tasks.jobs.job import Labels

_MAX_TITLE, _MAX_NOTES = 100, 4000


def _check_title(title: str) -> str:
    if any(not character.isprintable() for character in title):
        raise ValueError("must be one line without control characters")
    return title.strip()


def _check_notes(notes: str) -> str:
    if any(not character.isprintable() and character not in "\n\t" for character in notes):
        raise ValueError("must be plain text without control characters")
    return notes.strip()


Title = Annotated[str, Field(max_length=_MAX_TITLE), AfterValidator(_check_title)]
Notes = Annotated[str, Field(max_length=_MAX_NOTES), AfterValidator(_check_notes)]


class JobEdit(BaseModel):
    """What to change of a job; what is left out stays. Its id and files keep their names."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )

    title: Title | None = None
    """What people call the job, up to 100 characters; null or empty for its name."""
    notes: Notes | None = None
    """What people write about the job, up to 4,000 characters; null or empty for none."""
    labels: Labels | None = None
    """All of the job's labels, as at submit; null or empty for none."""

    @model_validator(mode="after")
    def _check_any(self) -> "JobEdit":
        if not self.model_fields_set:
            raise ValueError("names nothing to change; give title, notes or labels")
        return self

    def changes(self) -> dict[str, Any]:
        """Return the fields that are given, with an empty value for null."""
        empty: dict[str, Any] = {"title": "", "notes": "", "labels": {}}
        given = self.model_dump(exclude_unset=True)
        return {name: empty[name] if value is None else value for name, value in given.items()}
