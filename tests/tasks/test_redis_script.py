"""Scripts are called by names, and Redis keys are spelled in one module each."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tasks.redis_script import Key, ScriptFolder
from tasks.state.keys import UNACKED_INDEX
from worker.kombu_redis.transport import Keys

ROOT = Path(__file__).parents[2]
SOURCES = [
    path
    for package in ("console", "routing", "tasks", "worker")
    for path in (ROOT / package).rglob("*")
    if path.suffix in (".py", ".lua")
]
# The modules that spell keys, each its own; the transport names kombu's options.
KEY_MODULES = {
    "console/services/keys.py",
    "tasks/cache/index.py",
    "tasks/captions/runs.py",
    "tasks/contract.py",
    "tasks/eta/history.py",
    "tasks/state/keys.py",
    "worker/kombu_redis/transport.py",
}


@pytest.fixture
def folder(tmp_path: Path) -> ScriptFolder:
    (tmp_path / "types_of.lua").write_text(
        "-- include: shared.lua\n"
        "return cjson.encode({text, number, fraction, none, yes, names, fields, shared, key})"
    )
    (tmp_path / "shared.lua").write_text("local shared = keys.prefix .. limits.most\n")
    return ScriptFolder(tmp_path, {"keys": {"prefix": 'a"\\'}, "limits": {"most": 3}})


def test_arguments_arrive_under_their_names(folder: ScriptFolder, redis_client: Redis) -> None:
    @folder.script
    def types_of(
        *,
        text: str,
        key: Key,
        number: int,
        fraction: float | None,
        none: str | None,
        yes: bool,
        names: Sequence[str],
        fields: Mapping[str, int],
    ) -> str:
        raise NotImplementedError

    def call() -> object:
        return types_of(
            redis_client,
            text="é\n",
            key="the-key",
            number=3,
            fraction=1.5,
            none=None,
            yes=True,
            names=["x", "é"],
            fields={"a": 1},
        )

    expected = '["é\\n","3","1.5","","1",["x","é"],{"a":1},"a\\"\\\\3","the-key"]'
    assert call() == expected
    redis_client.script_flush()
    assert call() == expected


def test_a_constant_that_does_not_exist_is_an_error(folder: ScriptFolder, tmp_path: Path) -> None:
    (tmp_path / "types_of.lua").write_text("return keys.prefx")

    def types_of() -> str:
        raise NotImplementedError

    with pytest.raises(KeyError, match="prefx"):
        folder.script(types_of)


def test_each_redis_key_is_spelled_in_one_module() -> None:
    spelled = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        if re.search(r"""["'](training:|unacked)|\\x06\\x16""", path.read_text("utf-8"))
    }
    assert spelled == KEY_MODULES


def test_the_default_index_is_that_of_kombu() -> None:
    options: dict[str, Any] = {}
    assert Keys.of(options).unacked_index == UNACKED_INDEX
