import json
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, is_offline_mode

from tasks.base_models.check import check_base_model
from tasks.base_models.layouts import file_shapes
from tasks.base_models.parts import FLUX, SDXL, Family
from tasks.errors import Problem
from tasks.jobs.job import parse_job
from tests.tasks.base_models.files import safetensors_file
from tests.tasks.jobs.test_flux_lora import with_values

CLIP: dict[str, Any] = {
    "vocab_size": 8,
    "hidden_size": 4,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "projection_dim": 4,
}
T5: dict[str, Any] = {
    "vocab_size": 8,
    "d_model": 4,
    "d_kv": 2,
    "d_ff": 8,
    "num_layers": 1,
    "num_heads": 2,
}
VAE: dict[str, Any] = {"block_out_channels": [4, 4], "latent_channels": 4}
TRANSFORMER: dict[str, Any] = {
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 2,
    "num_attention_heads": 2,
    "joint_attention_dim": 4,
    "pooled_projection_dim": 4,
}
UNET: dict[str, Any] = {
    "block_out_channels": [4, 8],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 8,
    "projection_class_embeddings_input_dim": 4,
}
CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "FLUX": {
        "transformer": TRANSFORMER,
        "text_encoder": CLIP,
        "text_encoder_2": T5,
        "vae": {**VAE, "latent_channels": 16},
    },
    "SDXL": {"unet": UNET, "text_encoder": CLIP, "text_encoder_2": CLIP, "vae": VAE},
}


def build_model(folder: Path, family: Family) -> Path:
    """Write the files of a base model, as far as a check without loading sees them."""
    for part, config in CONFIGS[family.noun].items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config), "utf-8")
        shapes = family.parts[part].shapes(config)
        safetensors_file(folder / part / "model.safetensors", shapes, dtype="F16")
    for part in ("tokenizer", "tokenizer_2", "scheduler"):
        (folder / part).mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text("{}", "utf-8")
    vocabulary = {f"t{n}": n for n in range(8)}
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary), "utf-8")
    tokenizer = {"model": {"vocab": vocabulary}}
    (folder / "tokenizer_2" / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    index = {"_class_name": family.pipelines[0]}
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A FLUX folder."""
    return build_model(tmp_path / "model", FLUX)


def problems(model: Path | str, hub: HfApi | None = None, **values: Any) -> list[Problem]:
    config = parse_job(with_values(model=str(model), **values)).training
    return check_base_model(config, hub)


def messages(model: Path | str, hub: HfApi | None = None, **values: Any) -> list[str]:
    return [str(problem) for problem in problems(model, hub, **values)]


def sdxl_messages(model: Path | str, hub: HfApi | None = None, **values: Any) -> list[str]:
    loader = {
        "type": "IMAGE_CAPTION_SD_DATA_LOADER",
        "dataset": {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "/images"},
    }
    base = {"type": "SDXL_LORA", "max_train_steps": 1, "save_every_n_steps": 1}
    document = {"training": {**base, "model": str(model), "data_loader": loader, **values}}
    return [str(problem) for problem in check_base_model(parse_job(document).training, hub)]


@pytest.fixture
def sdxl(tmp_path: Path) -> Path:
    """An SDXL folder."""
    return build_model(tmp_path / "sdxl", SDXL)


def whole_file(
    path: Path, family: Family, leave_out: Sequence[str] = (), **more: tuple[int, ...]
) -> Path:
    """Write a whole model in one file, by the original names."""
    tensors: dict[str, tuple[int, ...]] = dict(more)
    for name, part in family.parts.items():
        if name not in leave_out:
            shapes = part.shapes(CONFIGS[family.noun][name])
            inside = file_shapes(part.namings[0](shapes), shapes)
            prefix = "".join(part.prefixes[0])
            tensors |= {prefix + it: shape for it, shape in inside.items()}
    return safetensors_file(path, tensors, dtype="F16")


def test_an_sdxl_folder_is_checked_part_by_part(sdxl: Path) -> None:
    assert sdxl_messages(sdxl) == []
    shutil.rmtree(sdxl / "unet")
    (sdxl / "vae" / "model.safetensors").unlink()
    unet, vae = sdxl_messages(sdxl)
    assert "unet: has no config.json" in unet
    assert "has no .safetensors weights" in vae


def test_vae_model_replaces_the_models_vae(sdxl: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.move(sdxl / "vae" / "model.safetensors", tmp_path / "vae.safetensors")
    other.mkdir()
    [problem] = sdxl_messages(sdxl, vae_model=str(other))
    assert "other: has no config.json" in problem
    shutil.copy(sdxl / "vae" / "config.json", other)
    shutil.move(tmp_path / "vae.safetensors", other / "model.safetensors")
    assert sdxl_messages(sdxl, vae_model=str(other)) == []


CONFIG_PROBLEMS = [
    ("unet", {"in_channels": 9}, "it is an inpainting model"),
    ("unet", {"in_channels": 8}, "an editing model"),
    ("vae", {"latent_channels": 16}, "latents have 16 channels, those of SDXL 4"),
    ("vae", {"latents_mean": [1, 2, 3, 4]}, "Playground v2.5"),
    ("text_encoder", {"quantization_config": {"quant_method": "torchao"}}, "quantized: torchao"),
    ("text_encoder", {"num_hidden_layers": "many"}, "describes another kind of model"),
    ("text_encoder", {"num_hidden_layers": 10**9}, "describes another kind of model"),
    ("scheduler", {"_class_name": "EDMEulerScheduler"}, "its scheduler is a EDMEulerScheduler"),
    ("scheduler", {"prediction_type": "sample"}, "set prediction_type"),
]


@pytest.mark.parametrize(("part", "values", "sentence"), CONFIG_PROBLEMS)
def test_a_variant_is_refused_by_its_config(
    sdxl: Path, part: str, values: dict[str, Any], sentence: str
) -> None:
    path = next((sdxl / part).glob("*config.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}), "utf-8")
    [problem] = sdxl_messages(sdxl)
    assert sentence in problem


@pytest.mark.parametrize(
    "pipeline", ["FluxFillPipeline", "FluxKontextPipeline", "FluxControlPipeline"]
)
def test_another_pipeline_is_refused_by_its_name(model: Path, pipeline: str) -> None:
    (model / "model_index.json").write_text(json.dumps({"_class_name": pipeline}), "utf-8")
    [problem] = messages(model)
    assert f"describes a {pipeline}; FLUX_LORA needs a FluxPipeline" in problem


def test_another_variant_of_the_weights_is_named(sdxl: Path) -> None:
    weights = sdxl / "unet" / "model.safetensors"
    weights.rename(weights.with_name("model.bf16.safetensors"))
    [problem] = sdxl_messages(sdxl)
    assert "other names or variants only (model.bf16.safetensors); set hf_variant" in problem
    assert sdxl_messages(sdxl, hf_variant="bf16") == []


def test_shards_are_checked_together(sdxl: Path) -> None:
    folder = sdxl / "unet"
    (folder / "model.safetensors").unlink()
    shapes = SDXL.parts["unet"].shapes(UNET)
    names = ("model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors")
    shards = dict.fromkeys(shapes, names[0]) | dict.fromkeys(list(shapes)[3:], names[1])
    for name in names:
        inside = {key: shape for key, shape in shapes.items() if shards[key] == name}
        safetensors_file(folder / name, inside, dtype="F16")
    index = folder / "model.safetensors.index.fp16.json"
    index.write_text(json.dumps({"weight_map": shards}), "utf-8")
    assert sdxl_messages(sdxl) == []
    safetensors_file(folder / names[1], {"stranger": (1,)}, dtype="F16")
    [problem] = sdxl_messages(sdxl)
    assert "lacks" in problem
    assert "stranger, which would not be read" in problem


def test_embedding_files_are_checked_by_their_tensors(sdxl: Path, tmp_path: Path) -> None:
    good = safetensors_file(
        tmp_path / "good.safetensors", dict.fromkeys(["clip_l", "clip_g"], (1, 4))
    )
    half = safetensors_file(tmp_path / "half.safetensors", dict.fromkeys(["clip_l"], (1, 4)))
    flat = safetensors_file(
        tmp_path / "flat.safetensors", dict.fromkeys(["clip_l", "clip_g"], (4,))
    )
    files = {"<a>": str(good), "<b>": str(half), "<c>": str(flat), "<d>": "/no.safetensors"}
    problems = sdxl_messages(sdxl, base_embeddings=files)
    assert [problem.partition(": ")[0] for problem in problems] == [
        "training.base_embeddings.<b>",
        "training.base_embeddings.<c>",
        "training.base_embeddings.<c>",
        "training.base_embeddings.<d>",
    ]
    assert "has no matrix clip_g" in problems[0]


def test_a_single_file_is_checked_with_its_config(sdxl: Path, tmp_path: Path) -> None:
    file = tmp_path / "whole.safetensors"
    assert "there is no such file" in sdxl_messages(file, single_file_config=str(sdxl))[0]
    whole_file(file, SDXL, leave_out=("text_encoder_2", "vae"))
    [problem] = sdxl_messages(file, single_file_config=str(sdxl))
    assert "has no second text encoder, no VAE; it is not a whole model" in problem
    whole_file(file, SDXL)
    for weights in sdxl.rglob("*.safetensors"):
        weights.unlink()  # the file has them
    assert sdxl_messages(file, single_file_config=str(sdxl)) == []
    shutil.rmtree(sdxl / "tokenizer_2")
    assert "has no vocabulary" in sdxl_messages(file, single_file_config=str(sdxl))[0]


def test_a_complete_model_has_no_problems(model: Path) -> None:
    assert messages(model) == []


def test_another_layout_is_a_problem(model: Path) -> None:
    (model / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    assert "describes a StableDiffusionXLPipeline" in messages(model)[0]
    (model / "model_index.json").unlink()
    assert "has no model_index.json" in messages(model)[0]


def test_all_missing_parts_are_reported(model: Path) -> None:
    for part in ("vae", "text_encoder_2", "tokenizer", "scheduler"):
        shutil.rmtree(model / part)
    assert len(messages(model)) == 4


def test_pickled_weights_are_refused(model: Path) -> None:
    weights = model / "vae" / "model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    assert "only pickled weights" in messages(model)[0]


@pytest.mark.parametrize("keep", [0, 5, 20, -1])
def test_truncated_weights_are_a_problem(model: Path, keep: int) -> None:
    weights = model / "transformer" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    [problem] = messages(model)
    assert "model.safetensors" in problem


def test_a_missing_shard_is_a_problem(model: Path) -> None:
    index = {"weight_map": {"w": "model.safetensors", "v": "model-2.safetensors"}}
    path = model / "transformer" / "model.safetensors.index.json"
    path.write_text(json.dumps(index), "utf-8")
    [problem] = messages(model)
    assert "model-2.safetensors" in problem


def test_a_tokenizer_needs_its_vocabulary(model: Path) -> None:
    (model / "tokenizer" / "vocab.json").write_text('{"a": 0, "b": 1}', "utf-8")
    (model / "tokenizer_2" / "tokenizer.json").unlink()
    small, none = messages(model)
    assert "has 2 tokens, its encoder 8" in small
    assert "has no vocabulary" in none


def test_a_file_that_replaces_a_part_is_checked(model: Path, tmp_path: Path) -> None:
    (model / "transformer" / "model.safetensors").unlink()
    stand_in = tmp_path / "mine.safetensors"
    assert "there is no such file" in messages(model, transformer_path=str(stand_in))[0]
    safetensors_file(stand_in, FLUX.parts["transformer"].shapes(TRANSFORMER), dtype="F16")
    assert messages(model, transformer_path=str(stand_in)) == []


class _Hub(BaseHTTPRequestHandler):
    """Answers as the Hub does for a good, a gated and a missing repository."""

    def do_GET(self) -> None:
        if "good/model" in self.path:
            config = {"diffusers": {"_class_name": "FluxPipeline"}}
            body = json.dumps({"id": "good/model", "siblings": [], "config": config}).encode()
            self.send_response(200)
        elif "files/model" in self.path:
            files = [{"rfilename": name} for name in ("flux-Q4.gguf", "README.md")]
            body = json.dumps({"id": "files/model", "siblings": files}).encode()
            self.send_response(200)
        elif "half/model" in self.path:
            files = [{"rfilename": name} for name in ("model_index.json", "vae/model.safetensors")]
            body = json.dumps({"id": "half/model", "siblings": files}).encode()
            self.send_response(200)
        elif "page/model" in self.path:
            body = b"<html>Please log in</html>"
            self.send_response(200)
        elif "failing/model" in self.path:
            body = b"{}"
            self.send_response(400)
        else:
            body = b"{}"
            gated = "gated/model" in self.path
            self.send_response(403 if gated else 404)
            self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HfApi]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield HfApi(endpoint=f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_hub_id_is_checked_on_the_hub(hub: HfApi) -> None:
    assert messages("good/model", hub) == []
    [other] = sdxl_messages("good/model", hub)
    assert "is a FluxPipeline; a StableDiffusionXLPipeline is needed" in other
    [layout] = messages("files/model", hub)
    assert "must be in diffusers' layout (it has flux-Q4.gguf)" in layout
    [weights] = messages("half/model", hub)
    assert "no .safetensors weights in transformer, text_encoder, text_encoder_2" in weights
    assert "gated/model is gated" in messages("gated/model", hub)[0]
    assert "nor a repository that HF_TOKEN can read" in messages("missing/model", hub)[0]


def test_an_unavailable_hub_is_a_retryable_problem() -> None:
    [problem] = problems("some/model", HfApi(endpoint="http://127.0.0.1:9"))
    assert "the Hub request failed" in str(problem)
    assert problem.retryable == (not is_offline_mode())


def test_neither_a_folder_nor_a_hub_id_is_a_problem(tmp_path: Path) -> None:
    [problem] = messages(tmp_path / "nowhere")
    assert "is neither a folder on this worker nor a Hub id" in problem


HOSTILE_HEADERS = [
    {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
    {"w": {"dtype": "U8", "shape": [4], "data_offsets": [-4, 4]}},
    {name: {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} for name in "vw"},
    {"w": {"dtype": "U8", "shape": [3], "data_offsets": [1, 4]}},
    {"w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}, "__metadata__": [1]},
    *[{"w": {"data_offsets": offsets}} for offsets in (["a", "b"], [0, None], [0], 3, {"1": 4})],
    {"w": {"data_offsets": [0, 4]}, "v": {"data_offsets": [0, "b"]}},
    {"w": 1},
    [1],
    None,
]


@pytest.mark.parametrize("header", [*map(json.dumps, HOSTILE_HEADERS), "[" * 100_000, "\xff", ""])
def test_a_damaged_header_is_a_problem(model: Path, header: str) -> None:
    text = header.encode("latin-1")
    weights = model / "vae" / "model.safetensors"
    weights.write_bytes(len(text).to_bytes(8, "little") + text + b"data")
    [problem] = messages(model)
    assert problem.startswith(f"{weights}: ")


@pytest.mark.parametrize(
    ("names", "excess"),
    [
        ([str(number) for number in range(30_001)], "it has 30,001 tensors"),
        (["x" * 251], "it has a tensor's name of 251 characters"),
    ],
)
def test_what_no_model_has_is_refused_at_once(
    model: Path, names: Iterable[str], excess: str
) -> None:
    entry = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    text = json.dumps(dict.fromkeys(names, entry)).encode()
    weights = model / "vae" / "model.safetensors"
    weights.write_bytes(len(text).to_bytes(8, "little") + text)
    [problem] = messages(model)
    assert excess in problem


@pytest.mark.parametrize(
    "index", ["{", "[" * 100_000, "[]", '{"weight_map": [1]}', '{"weight_map": null}']
)
def test_a_damaged_list_of_shards_is_a_problem(model: Path, index: str) -> None:
    path = model / "vae" / "model.safetensors.index.json"
    path.write_text(index, "utf-8")
    assert messages(model) == [f"{path}: is damaged; download it again"]


@pytest.mark.parametrize("tokenizer", ["", "{", "[]", '{"model": {"vocab": [["a", 0]]}}'])
def test_a_damaged_tokenizer_is_a_problem(model: Path, tokenizer: str) -> None:
    (model / "tokenizer_2" / "tokenizer.json").write_text(tokenizer, "utf-8")
    [problem] = messages(model)
    assert "tokens, its encoder 8; download the tokenizer again" in problem


@pytest.mark.parametrize("tokenizer", [{"model": [1]}, {"model": None}, {"model": {"vocab": 3}}])
def test_an_unknown_tokenizer_format_is_accepted(model: Path, tokenizer: dict[str, Any]) -> None:
    (model / "tokenizer_2" / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    assert messages(model) == []


def test_a_damaged_config_is_a_problem(model: Path) -> None:
    path = model / "transformer" / "config.json"
    path.write_text("{", "utf-8")
    assert messages(model) == [f"{path}: is damaged; download it again"]


@pytest.mark.parametrize("name", ["x" * 5000, "a/b/c", " "])
def test_an_impossible_name_is_a_problem(model: Path, name: str) -> None:
    assert "is neither a folder on this worker nor a Hub id" in messages(name)[0]
    path = f"{name}.safetensors"
    assert "there is no such file" in messages(model, transformer_path=path)[0]


def test_a_proxys_page_is_not_a_hub_answer(hub: HfApi) -> None:
    [problem] = messages("page/model", hub)
    assert "the Hub request failed" in problem
    [problem] = messages("failing/model", hub)
    assert "the Hub request failed" in problem
    assert "\n" not in problem
