import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.cli.job_file import read_job_file
from worker.errors import UnreadableJobFileError


def read(folder: Path, training: dict[str, Any]) -> dict[str, Any]:
    path = folder / "job.yaml"
    path.write_text(json.dumps({"training": training}), "utf-8")
    values: dict[str, Any] = read_job_file(path)["training"]
    return values


@pytest.mark.parametrize(
    "option",
    ["transformer_path", "text_encoder_1_path", "text_encoder_2_path", "initial_embedding_file"],
)
def test_relative_files_start_at_the_job_file(tmp_path: Path, option: str) -> None:
    read_values = read(tmp_path, {option: "models/part.safetensors"})
    assert read_values[option] == str(tmp_path / "models/part.safetensors")
    assert read(tmp_path, {option: "/part.safetensors"})[option] == "/part.safetensors"
    assert read(tmp_path, {option: None})[option] is None


@pytest.mark.parametrize("option", ["model", "single_file_config", "vae_model"])
def test_a_model_is_a_hub_id_unless_it_must_be_a_path(tmp_path: Path, option: str) -> None:
    for text, expected in (
        ("some/model", "some/model"),
        ("./some/model", str(tmp_path / "some/model")),
        ("../model", str(tmp_path.parent / "model")),
        ("sdxl.safetensors", str(tmp_path / "sdxl.safetensors")),
        ("models/flux/dev", str(tmp_path / "models/flux/dev")),
        ("/models/flux/dev", "/models/flux/dev"),
        ("s3://models/flux/dev", "s3://models/flux/dev"),
    ):
        assert read(tmp_path, {option: text})[option] == expected


@pytest.mark.parametrize("option", ["model", "single_file_config", "vae_model"])
def test_a_model_folder_beside_the_job_file_is_no_hub_id(tmp_path: Path, option: str) -> None:
    (tmp_path / "models" / "vae").mkdir(parents=True)
    assert read(tmp_path, {option: "models/vae"})[option] == str(tmp_path / "models/vae")
    assert read(tmp_path, {option: "models"})[option] == str(tmp_path / "models")


def test_other_options_are_left_as_they_are(tmp_path: Path) -> None:
    training = {
        "base_output_dir": "people/cat",
        "placeholder_token": "cat",
        "bogus": "models/flux/dev",
        "data_loader": {"dataset": {"dataset_name": "owner/cats", "hf_cache_dir": "hub"}},
    }
    anchored = json.loads(json.dumps(training))
    anchored["data_loader"]["dataset"]["hf_cache_dir"] = str(tmp_path / "hub")
    assert read(tmp_path, training) == anchored


def test_relative_datasets_start_at_the_job_file(tmp_path: Path) -> None:
    sets = {
        "instance_dataset": {"dataset_dir": "cat"},
        "class_dataset": {"dataset_dir": "cats"},
        "dataset": {"jsonl_path": "rows.jsonl"},
    }
    archives = {"dataset": {"archive": "set.zip"}, "class_dataset": {"archive": "s3://a/b.zip"}}
    assert read(tmp_path, {"data_loader": archives})["data_loader"] == {
        "dataset": {"archive": str(tmp_path / "set.zip")},
        "class_dataset": {"archive": "s3://a/b.zip"},
    }
    loader = read(tmp_path, {"data_loader": sets})["data_loader"]
    assert loader == {
        "instance_dataset": {"dataset_dir": str(tmp_path / "cat")},
        "class_dataset": {"dataset_dir": str(tmp_path / "cats")},
        "dataset": {"jsonl_path": str(tmp_path / "rows.jsonl")},
    }


def test_relative_embedding_files_start_at_the_job_file(tmp_path: Path) -> None:
    found = read(tmp_path, {"base_embeddings": {"<a>": "a.safetensors"}})["base_embeddings"]
    assert found == {"<a>": str(tmp_path / "a.safetensors")}


@pytest.mark.parametrize("training", [3, None, [], {"data_loader": 3}, {"base_embeddings": [1]}])
def test_an_invalid_document_is_left_to_the_validation(tmp_path: Path, training: Any) -> None:
    assert read(tmp_path, training) == training


@pytest.mark.parametrize(
    ("text", "said"), [("a: [", "not YAML"), ("- 1", "a job is a mapping"), ("\x00", "not YAML")]
)
def test_an_unreadable_file_is_reported(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(UnreadableJobFileError, match=said):
        read_job_file(path)
    with pytest.raises(UnreadableJobFileError, match="cannot read"):
        read_job_file(tmp_path / "nowhere.yaml")


LONG_NUMBER = "1:" * 100_000 + "1"
UNREADABLE = {
    "an alias": ("a: &a [1, 1]\nb: *a", "an alias is not read"),
    "billions of values": ("a: &a [1]\nb: &b [*a, *a]\nc: [*b, *b]", "an alias is not read"),
    "a merged alias": ("a: &a {b: 1}\nc: {<<: *a}", "an alias is not read"),
    "a key twice": ("training: {a: 1}\ntraining: {b: 1}", "the key 'training' occurs 2 times"),
    "a number of base 60": (f"a: {LONG_NUMBER}", "the number '1:1:1:.* is too long"),
    "a long number": ("a: " + "1" * 5000, "the number '111.* is too long"),
    "many keys": ("\n".join(f"k{number}: 1" for number in range(90_000)), "more than 20,000"),
    "deep lists": ("[" * 100_000, "is nested too deeply"),
    "deep mappings": ('{"a":' * 100 + "1" + "}" * 100, "is nested too deeply"),
    "no date": ("a: 2001-99-99", "is not YAML"),
    "a value that is not its tag's": ("a: !!timestamp abc", "is not YAML"),
    "a program": ("a: !!python/object/apply:os.system [ls]", "is not YAML"),
    "a mebibyte": ("a: " + "x" * 2**20, "is larger than 1,048,576 bytes"),
    "a control character": ("a: \x1b[31m", "is not YAML"),
}


@pytest.mark.parametrize(("text", "problem"), UNREADABLE.values(), ids=UNREADABLE)
def test_an_unreadable_job_file_is_refused_at_once(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text, "utf-8")
    began_s = time.process_time()
    with pytest.raises(UnreadableJobFileError, match=problem) as caught:
        read_job_file(path)
    assert time.process_time() - began_s < 3
    assert len(str(caught.value)) < 1000 + len(str(path))


@given(st.text() | st.text(alphabet="ab: -[]{}&*!'\"\n1#|>?%@,~.<"))
def test_any_text_is_a_job_file_or_is_refused(tmp_path_factory: Any, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with suppress(UnreadableJobFileError):
        assert isinstance(read_job_file(path), dict)
