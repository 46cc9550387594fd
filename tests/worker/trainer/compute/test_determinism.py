from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.events import Event, Note, ValidationImages
from tests.worker.trainer.runs import CACHED, Images, config_of, run_train
from worker.trainer.compute.determinism import Determinism
from worker.trainer.data.batches import Batch
from worker.trainer.flux.lora_recipe import FluxLora
from worker.trainer.flux.sampler import FluxSampler


@pytest.fixture(autouse=True)
def restored_mode() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


def test_each_request_sets_its_mode() -> None:
    Determinism(lambda _: None, wanted=False)
    assert not torch.are_deterministic_algorithms_enabled()
    Determinism(lambda _: None)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()


# Among the operators that have no deterministic kernel on the CPU either.
def put() -> torch.Tensor:
    return torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))


@pytest.mark.filterwarnings("ignore:put_ does not have a deterministic implementation")
def test_an_operator_without_a_kernel_is_named_and_computed() -> None:
    events: list[Event] = []
    undone: list[bool] = []
    determinism = Determinism(events.append)
    assert determinism.run(put, lambda: undone.append(True)).sum() in (1, 2)
    assert (undone, determinism.problem) == (
        [True],
        "put_ has no deterministic kernel on this device",
    )
    [note] = events
    assert isinstance(note, Note)
    assert note.message.startswith("put_ has no deterministic kernel")
    determinism.run(put)
    assert len(events) == 1


@pytest.mark.filterwarnings("ignore:put_ does not have a deterministic implementation")
def test_a_run_continues_without_strictness_and_reports_it(
    tiny_flux: Path, data: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {
        "max_train_steps": 2,
        "save_every_n_steps": 1,
        "gradient_accumulation_steps": 2,
    }
    config = config_of(tiny_flux, **CACHED, **options)
    straight = run_train(data, config)
    assert straight.done.nondeterminism is None
    losses, calls = FluxLora.losses, count()

    def losses_with_put(recipe: FluxLora, batch: Batch) -> torch.Tensor:
        if next(calls) == 1:  # the second batch: the first one has made gradients
            put()
        return losses(recipe, batch)

    monkeypatch.setattr(FluxLora, "losses", losses_with_put)
    relaxed = run_train(data, config)
    assert relaxed.losses == straight.losses
    assert relaxed.done.nondeterminism == "put_ has no deterministic kernel on this device"
    assert [note.level for note in relaxed.events.of(Note)] == ["warning"]
    monkeypatch.undo()
    # The run stays one that was not exact.
    key = relaxed.checkpoints[0].state_key
    assert run_train(data, config, resume_state_key=key).done.nondeterminism is not None


@pytest.mark.filterwarnings("ignore:put_ does not have a deterministic implementation")
def test_validation_continues_without_strictness(
    tiny_flux: Path, data: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = FluxSampler.sample

    def sample_with_put(*values: Any) -> torch.Tensor:
        put()
        return sample(*values)

    monkeypatch.setattr(FluxSampler, "sample", sample_with_put)
    options: dict[str, Any] = {"max_train_steps": 1, "validate_every_n_steps": 1}
    run = run_train(data, config_of(tiny_flux, **options, validation_prompts=["a cat"]))
    assert run.done.nondeterminism is not None
    [made] = run.events.of(ValidationImages)
    assert len(made.images) == 4


def test_other_errors_are_raised() -> None:
    def fail() -> None:
        raise RuntimeError("another error")

    with pytest.raises(RuntimeError, match="another error"):
        Determinism(lambda _: None).run(fail)
