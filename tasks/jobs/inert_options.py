"""Options that are given and have no effect: how a config is asked for them.

Knows how to find out whether an option was given; which option acts when is each config's to say.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel


@dataclass(frozen=True)
class Effect:
    """Whether an option acts in a config.

    Attributes:
        acts: It changes something there.
        otherwise: Why it does not, where it does not; ends "... has no effect: ".
    """

    acts: bool
    otherwise: str


Effects = Mapping[str, Effect]
"""Of options that do not always act, by their dotted paths within the config."""


def without_effect(config: BaseModel, effects: Effects) -> list[str]:
    """A sentence for each option that is given and does not act."""
    return [
        f"{path} has no effect: {effect.otherwise}"
        for path, effect in effects.items()
        if not effect.acts and _is_given(config, path)
    ]


def _is_given(config: BaseModel, path: str) -> bool:
    value: object = config
    for name in path.split("."):
        # A path into another branch of a union leads nowhere.
        if not isinstance(value, BaseModel) or name not in value.model_fields_set:
            return False
        value = getattr(value, name)
    # Null, false, zero and nothing ask for no effect.
    return bool(value)
