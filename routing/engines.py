"""The engines that can train a job."""

from typing import Literal

Engine = Literal["diffusers", "invoke-training"]
DIFFUSERS: Engine = "diffusers"
INVOKE: Engine = "invoke-training"
# Those that not every worker has.
EXTRA_ENGINES: tuple[Engine, ...] = (INVOKE,)
