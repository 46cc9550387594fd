"""Lua scripts in files, called from Python by the names of their keys and arguments.

A script is declared as a function whose parameters are keyword-only; the function's own body never
runs. The script's file has the function's name. Parameters annotated with ``Key`` become ``KEYS``,
the others ``ARGV``. The Lua code finds each as a local variable of its name: strings and numbers
as strings (``'3' ~= 3`` in Lua), ``None`` as an empty string, truth values as ``'1'`` and ``'0'``,
and the rest as tables, sent as JSON.
"""

import hashlib
import inspect
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.resources.abc import Traversable
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Generic,
    ParamSpec,
    TypeAlias,
    TypeVar,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from redis import Redis
from redis.exceptions import NoScriptError

P = ParamSpec("P")
R = TypeVar("R")

_KEY = object()
Key: TypeAlias = Annotated[str, _KEY]
"""A parameter that is a key in Redis."""

_PLAIN = (str, int, float, bool, NoneType)
_INCLUDE = re.compile(r"^-- include: (\S+)\n", re.MULTILINE)
_COMMENT = re.compile(r"^ *--.*\n", re.MULTILINE)
_WORD = re.compile(r"\w+")
# On one line, or up to the first ``end`` at the beginning of a line.
_FUNCTION = re.compile(
    r"^local function (\w+)\((?:[^\n]*\bend|.*?\nend)\n", re.MULTILINE | re.DOTALL
)


class Script(Generic[P, R]):
    """A Lua script.

    Args:
        declaration: The function that declares the parameters and the type of the reply.
        code: The script's code, which finds them as local variables.
    """

    def __init__(self, declaration: Callable[P, R], code: str) -> None:
        self.__doc__ = declaration.__doc__
        hints = get_type_hints(declaration, include_extras=True)
        names = list(inspect.signature(declaration).parameters)
        self._keys = [name for name in names if _KEY in get_args(hints[name])]
        self._arguments = [name for name in names if name not in self._keys]
        self._json = {name for name in self._arguments if not _is_plain(hints[name])}
        self.source = f"{self._header()}{code}"
        self._digest = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, client: Redis, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the script on a server and return its reply."""
        values = [
            *(kwargs[name] for name in self._keys),
            *(self._encoded(name, kwargs[name]) for name in self._arguments),
        ]
        call = (self._digest, len(self._keys), *cast("list[Any]", values))
        try:
            return cast("R", client.evalsha(*call))
        except NoScriptError:
            # EVAL loads the script too: a failover between two requests would lose it again.
            _, *rest = call
            return cast("R", client.eval(self.source, *rest))

    def _header(self) -> str:
        lines = [f"local {name} = KEYS[{i}]" for i, name in enumerate(self._keys, 1)]
        for i, name in enumerate(self._arguments, 1):
            value = f"cjson.decode(ARGV[{i}])" if name in self._json else f"ARGV[{i}]"
            lines.append(f"local {name} = {value}")
        return "".join(f"{line}\n" for line in lines)

    def _encoded(self, name: str, value: object) -> str | int | float:
        if name in self._json:
            return json.dumps(value, ensure_ascii=False)
        if value is None:
            return ""
        return int(value) if isinstance(value, bool) else cast("str | int | float", value)


class ScriptFolder:
    """A folder of Lua scripts that share constants and files.

    Args:
        folder: It holds a file for each script; a line ``-- include: NAME`` is replaced by
            another file of the folder.
        constants: Tables of strings and numbers. In a script, ``NAME.FIELD`` is replaced by the
            value.
    """

    def __init__(
        self, folder: Traversable, constants: Mapping[str, Mapping[str, str | int]]
    ) -> None:
        self._folder = folder
        self._constants = constants
        self._constant = re.compile(rf"\b({'|'.join(constants) or '(?!)'})\.(\w+)\b")

    def script(self, declaration: Callable[P, R]) -> Script[P, R]:
        """Turn a declaration into the script of its name (a decorator).

        Raises:
            KeyError: The script names a constant that its table lacks.
        """
        code = _without_unused_functions(self._read(f"{declaration.__name__}.lua"))
        # A string literal of JSON is one of Lua too, for text without control characters.
        code = self._constant.sub(lambda it: json.dumps(self._constants[it[1]][it[2]]), code)
        return Script(declaration, code)

    def _read(self, name: str) -> str:
        text = (self._folder / name).read_text("utf-8")
        return _INCLUDE.sub(lambda match: self._read(match[1]), text)


def _is_plain(hint: Any) -> bool:
    """Whether a parameter is sent as a text: a string, a number, or one of them or None."""
    options = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    return all(option in _PLAIN for option in options)


def _without_unused_functions(code: str) -> str:
    """Remove functions that are not called, which each call of the script would define."""
    code = _COMMENT.sub("", code)
    uses = Counter(_WORD.findall(code))
    for definition in reversed(list(_FUNCTION.finditer(code))):
        if uses[definition[1]] == 1:
            uses -= Counter(_WORD.findall(definition[0]))
            code = code[: definition.start()] + code[definition.end() :]
    return code
