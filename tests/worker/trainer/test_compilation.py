import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from tasks.events import CheckpointSaved, TrainerPhase
from tasks.extras import compiler_problem
from tests.worker.trainer.runs import (
    BUCKETS,
    Trained,
    TrainerProcess,
    config_of,
    images,
    request_of,
    run_train,
)
from tests.worker.trainer.runs_options import flux_request
from worker.trainer.compilation import CompiledBlocks, prepare_compiler
from worker.trainer.compute.determinism import Determinism
from worker.trainer.errors import CompileError, ForeignStateError
from worker.trainer.tiny_models import build_tiny_flux

# torch's own: it hides the first, but not from a filter that makes it an error.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated"),
]


@pytest.fixture(autouse=True)
def fresh_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.setenv("TRITON_CACHE_DIR", "")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    torch.compiler.set_default_backend(None)
    torch.compiler.set_stance("default")
    torch.use_deterministic_algorithms(False)


def assert_same(one: Trained, other: Trained) -> None:
    assert all(torch.equal(tensor, other.state[name]) for name, tensor in one.state.items())


@pytest.mark.timeout(600)
def test_a_warm_trainer_compiles_once(tmp_path: Path) -> None:
    # Without code generation: what counts is which graphs are made.
    torch.compiler.set_default_backend("aot_eager")
    model = build_tiny_flux(tmp_path / "model", double_blocks=1, single_blocks=0)
    # Batches of 3 and 2 in one bucket, and of 2 in another.
    data = images(tmp_path, ((64, 64),) * 5 + ((99, 50),) * 2)
    made: list[int] = []

    def run(resume: str | None = None, **options: Any) -> Trained:
        before = counters["stats"]["unique_graphs"]
        values: dict[str, Any] = {
            "flux_lora_target_modules": ["attn.to_q"],
            "train_batch_size": 3,
            "max_train_steps": 3,
            "save_every_n_steps": 1,
            "compile": True,
        }
        loader = {"aspect_ratio_buckets": BUCKETS}
        config = config_of(model, loader=loader, **{**values, **options})
        trained = run_train(data, config, resume_state_key=resume)
        made.append(counters["stats"]["unique_graphs"] - before)
        return trained

    first = run()
    assert [event.name for event in first.events.of(TrainerPhase)][:2] == ["load", "compile"]
    validated: dict[str, Any] = {
        "validation_prompts": ["a cat"],
        "num_validation_images_per_prompt": 1,
    }
    others = [
        run(**validated, validate_every_n_steps=3),
        run(gradient_checkpointing=1),
        run(gradient_checkpointing=True),
        run(first.checkpoints[0].state_key),
    ]
    assert made == [1, 0, 0, 0, 0]
    for other in others:
        assert_same(first, other)
    with pytest.raises(ForeignStateError, match="compile"):
        run(first.checkpoints[0].state_key, compile=False)
    assert torch.allclose(run(compile=False).state["history"], first.state["history"])
    assert made[-1] == 0


@pytest.mark.timeout(600)
@pytest.mark.skipif("LONG_TESTS" not in os.environ, reason="it takes two minutes; set LONG_TESTS")
def test_a_run_resumes_exactly_in_a_process_that_compiles_again(tmp_path: Path) -> None:
    model = build_tiny_flux(tmp_path / "model", double_blocks=1, single_blocks=0)
    config = config_of(
        model,
        loader={"aspect_ratio_buckets": BUCKETS},
        flux_lora_target_modules=["attn.to_q"],
        weight_dtype="bfloat16",
        max_train_steps=4,
        save_every_n_steps=2,
        compile=True,
    )
    data = images(tmp_path, ((64, 64), (64, 64), (99, 50)))
    key, ends = None, []
    for start in ("1", "2"):
        # Each with an empty folder of compiled code.
        scratch = str(tmp_path / start / "scratch")
        request = request_of(
            data, "train", config, start_id=start, scratch_dir=scratch, resume_state_key=key
        )
        events, code, errors = TrainerProcess(request).finish()
        assert code == 0, errors
        assert any((tmp_path / start / "compiled").iterdir())
        saved = events.of(CheckpointSaved)
        key = saved[0].state_key
        ends.append(saved[-1].weights.sha256)
    assert ends[0] == ends[1]


class Block(torch.nn.Module):
    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)
        self.change = change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.change(self.linear(x))  # (B, tokens, 8)


class Model(torch.nn.Module):
    """Two blocks of one kind."""

    _repeated_blocks = ("Block",)

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.blocks = torch.nn.Sequential(Block(change), Block(change))
        for number, weight in enumerate(self.parameters()):
            weight.data = torch.linspace(-1, number, weight.numel()).view_as(weight)

    def gradients(self, batch: int, tokens: int) -> torch.Tensor:
        x = torch.linspace(-2, 2, batch * tokens * 8).view(batch, tokens, 8)
        grads = torch.autograd.grad(self.blocks(x).sum(), list(self.parameters()))
        return torch.cat([grad.flatten() for grad in grads])


def put(x: torch.Tensor) -> torch.Tensor:
    return x.put(torch.tensor([0, 0]), x.flatten()[:2])


@pytest.mark.filterwarnings("ignore:put_ does not have a deterministic implementation")
def test_an_operator_without_a_kernel_is_found_in_a_compiled_block() -> None:
    torch.compiler.set_default_backend("aot_eager")
    determinism, model = Determinism(lambda _: None), Model(put)
    CompiledBlocks(model).make_graphs(lambda: determinism.run(lambda: model.gradients(2, 12)))
    assert determinism.problem == "put_ has no deterministic kernel on this device"


def test_what_cannot_be_compiled_is_refused() -> None:
    model = Model(lambda x: x if x.sum() > 0 else -x)
    with pytest.raises(CompileError, match="set compile false"):
        CompiledBlocks(model).make_graphs(lambda: model.gradients(2, 12))


def test_a_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(CompileError, match=r"apt-get install g\+\+"):
        prepare_compiler(flux_request())
    assert compiler_problem(cuda=True) is not None


def test_compiled_code_is_in_a_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.trainer.compilation._MAX_FOLDER_BYTES", 3)
    request = flux_request(scratch_dir=str(tmp_path / "job-1"))
    folder = tmp_path / "compiled"
    prepare_compiler(request)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder)
    for number, name in enumerate(("old", "new")):
        (folder / name).write_bytes(b"12")
        os.utime(folder / name, (number, number))
    prepare_compiler(request)
    assert [path.name for path in folder.iterdir()] == ["new"]
    folder.chmod(0o770)
    with pytest.raises(CompileError, match="other users"):
        prepare_compiler(request)
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CompileError, match="other users"):
        prepare_compiler(request)
