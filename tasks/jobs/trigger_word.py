"""The trigger word: text that every caption and sample prompt of a run contains."""

import unicodedata
from typing import Annotated

from pydantic import AfterValidator, Field

from tasks.jobs.field_metadata import Affects, Location

# A caption's share for the word: CLIP reads 75 tokens, some 300 characters.
MAX_TRIGGER_WORD = 100


def _one_line(word: str) -> str:
    """Return a trigger word.

    Raises:
        ValueError: It has no letter or digit, or misplaced spaces, or characters that do not print.
    """
    if not word.isprintable():
        raise ValueError("must be one line of printable characters, such as 'ohwx cat'")
    if word != " ".join(word.split()):
        raise ValueError("must have no space at its ends, and single ones between its words")
    if not any(map(str.isalnum, word)):
        raise ValueError("must have a letter or a digit")
    return word


TriggerWord = Annotated[
    str,
    Field(min_length=1, max_length=MAX_TRIGGER_WORD),
    AfterValidator(_one_line),
    Location.NONE,
    Affects.CACHE_ENTRIES,
]


def with_trigger_word(word: str | None, text: str) -> str:
    """Return ``WORD, text``, or the text itself if it has the word already.

    Args:
        word: The trigger word; None adds nothing.
        text: A caption or a prompt; an empty one becomes the word alone.
    """
    if word is None or contains_word(text, word):
        return text
    return f"{word}, {text}" if text.strip() else word


def contains_word(text: str, word: str) -> bool:
    """Return whether a text has a word or words, in any case, and not inside of another word."""
    text, word = _folded(text), _folded(word)
    start = text.find(word)
    while start >= 0:
        end = start + len(word)
        begins = not (start and _is_letter(text[start - 1]) and _is_letter(word[0]))
        ends = not (end < len(text) and _is_letter(text[end]) and _is_letter(word[-1]))
        if begins and ends:
            return True
        start = text.find(word, start + 1)
    return False


def _folded(text: str) -> str:
    """Return what texts have in common that differ in case, Unicode form or blanks only."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return " ".join(folded.split())


def _is_letter(character: str) -> bool:
    """Return whether a character is part of a word: a letter, a mark on one, a digit or ``_``."""
    return character == "_" or unicodedata.category(character)[0] in "LMN"
