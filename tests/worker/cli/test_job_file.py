import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import InvalidJobError
from worker.cli.job_file import load_job, read_job_file
from worker.errors import UnreadableJobFileError


def read(folder: Path, training: dict[str, Any]) -> dict[str, Any]:
    path = folder / "job.yaml"
    path.write_text(json.dumps({"training": training}), "utf-8")
    values: dict[str, Any] = read_job_file(path).values["training"]
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
        ("tiny sdxl", str(tmp_path / "tiny sdxl")),
        ("models/", str(tmp_path / "models")),
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


@pytest.mark.parametrize("name", ["~/models/sdxl", "~/models/sdxl.safetensors"])
def test_a_tilde_is_the_home_of_the_user(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    home = str(tmp_path / "me" / "models" / "sdxl")
    dataset = {"dataset": {"dataset_dir": "~/models/sdxl"}}
    found = read(tmp_path, {"model": name, "transformer_path": name, "data_loader": dataset})
    assert found["model"] == found["transformer_path"] == home + name[13:]
    assert found["data_loader"]["dataset"]["dataset_dir"] == home


def test_a_path_that_no_system_has_is_left_to_the_validation(tmp_path: Path) -> None:
    for text in ("a\0b", "a\0b.safetensors", "x" * 5000):
        assert read(tmp_path, {"model": text})["model"].endswith(text)


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


def test_a_bare_config_is_the_training_part(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("name: cat\ntype: FLUX_LORA\ntransformer_path: a.ckpt")
    assert read_job_file(tmp_path / "job.yaml").values == {
        "name": "cat",
        "training": {"type": "FLUX_LORA", "transformer_path": str(tmp_path / "a.ckpt")},
    }
    with pytest.raises(InvalidJobError) as caught:
        load_job(tmp_path / "job.yaml")
    assert "training.transformer_path (line 3): " in str(caught.value)


def test_problems_have_the_lines_of_their_options(tmp_path: Path) -> None:
    lines = ["training:", "  type: SDXL_LORA", "  seed: -1", "  data_loader: {dataset: {typ: 1}}"]
    (tmp_path / "job.yaml").write_text("\n".join(lines), "utf-8")
    with pytest.raises(InvalidJobError) as caught:
        load_job(tmp_path / "job.yaml")
    locations = [problem.location for problem in caught.value.problems]
    assert "training.seed (line 3)" in locations
    assert "training.max_train_epochs" in locations


@pytest.mark.parametrize("training", [3, None, [], {"data_loader": 3}, {"base_embeddings": [1]}])
def test_an_invalid_document_is_left_to_the_validation(tmp_path: Path, training: Any) -> None:
    assert read(tmp_path, training) == training


@pytest.mark.parametrize(
    ("text", "said"), [("a: [", "not YAML"), ("- 1", "a job is a mapping"), ("\x00", "no text")]
)
def test_an_unreadable_file_is_reported(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(UnreadableJobFileError, match=said):
        read_job_file(path)
    with pytest.raises(UnreadableJobFileError, match="cannot read"):
        read_job_file(tmp_path / "nowhere.yaml")


UNREADABLE = {
    "an alias": ("a: &a [1, 1]\nb: *a", r"line 2: the alias \*a is not read"),
    "billions of values": ("a: &a [1]\nb: &b [*a, *a]\nc: [*b, *b]", r"alias \*a is not read"),
    "a merged alias": ("a: &a {b: 1}\nc: {<<: *a}", r"the alias \*a is not read"),
    "a merge key": ("a: 1\nc: {<<: {b: 1}}", "line 2: the merge key << is not read"),
    "a key twice": ("a:\n  b: 1\n\n  b: 2", "the key 'a.b' in line 2 and again in line 4"),
    "a JSON key twice": ('{\n\t"a": 1,\n\t"a": 2\n}', "the key 'a' in line 2 and again in line 3"),
    "a key three times": ("a: 1\na: 1\na: 1", "the key 'a' in line 1, 2 and again in line 3"),
    "two keys twice": ("{a: 1, a: 2, b: 3, b: 4}", "the key 'a' .* the key 'b'"),
    "a key of two types": ('1: a\n"1": b', "the key '1' in line 1 and again in line 2"),
    "a key in an item": ("a: [{b: 1}, {b: 1, b: 2}]", "the key 'a.1.b' in line 1"),
    "a list as a key": ("? [a, b]\n: 1", "line 1: a key must be text"),
    "a long number": ("a: " + "1" * 5000, "the number '111.* is too long"),
    "many keys": ("\n".join(f"k{number}: 1" for number in range(90_000)), "more than 20,000"),
    "deep lists": ("[" * 100_000, "is nested too deeply"),
    "deep mappings": ('{"a":' * 100 + "1" + "}" * 100, "is nested too deeply"),
    "a value that is not its tag's": ("a: !!int abc", "'abc' does not fit its tag !!int"),
    "an unknown tag": ("a: !!timestamp 2001-01-01", "the tag .* is not read"),
    "a program": ("a: !!python/object/apply:os.system ls", "the tag .* is not read"),
    "a tab": ("a:\n\tb: 1", "line 2, column 1: .*; indent with spaces, not with tabs"),
    "text with a colon": ("a: b: c", "line 1, column 5: this ':' is not expected"),
    "broken JSON": ('{\n\t"a": 1\n\t"b": 2\n}', "is not JSON: line 3, column 2: Expecting ','"),
    "two documents": ("a: 1\n---\nb: 1", "line 2, .* a file holds one job"),
    "UTF-16 without a mark": ("a\0:\0 \0", "is UTF-16 text or no text; save it as UTF-8"),
    "no UTF-8": ("a: \udcff", "is not UTF-8 text; save it as UTF-8"),
    "a mebibyte": ("a: " + "x" * 2**20, "is larger than 1,048,576 bytes"),
    "a control character": ("a: \x1b[31m", "is not YAML"),
}


@pytest.mark.parametrize(("text", "problem"), UNREADABLE.values(), ids=UNREADABLE)
def test_an_unreadable_job_file_is_refused_at_once(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    began_s = time.process_time()
    with pytest.raises(UnreadableJobFileError, match=problem) as caught:
        read_job_file(path)
    assert time.process_time() - began_s < 3
    assert len(str(caught.value)) < 1000 + len(str(path))


# No deadline: it would measure the load of the machine. The texts are short instead.
@settings(deadline=None)
@given(st.text(max_size=200) | st.text(alphabet="ab: -[]{}&*!'\"\n1#|>?%@,~.<", max_size=200))
def test_any_text_is_a_job_file_or_is_refused(tmp_path_factory: Any, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with suppress(UnreadableJobFileError):
        assert isinstance(read_job_file(path).values, dict)
