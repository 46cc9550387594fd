"""The broker's URL: its grammar, and what is wrong with one that cannot work.

No message has a piece of the URL in it: any piece may belong to a password that is not quoted.
"""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, quote, unquote, urlencode

_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs")
# ``with_sentinel`` adds them to the URL that the setting holds.
_SENTINEL_OPTIONS = ("sentinel_master", "sentinel_password")
_SERVER_PORT, _SENTINEL_PORT = 6379, 26379
# A sentinel that does not answer by then is skipped.
_SENTINEL_TIMEOUT_S = 2
_ALIASES = {"valkey": "redis", "valkeys": "rediss", "unix": "redis+socket"}
_SCHEMES = ("redis", "rediss", "redis+socket", "sentinel", "sentinels")
_EXAMPLE = "redis://HOST:6379/0"
# The user and password are whatever stands before the last @, so that one that is not quoted is
# found.
_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://"
    r"((?P<user>[^@:]*)(:(?P<password>.*))?@)?"
    r"(?P<host>\[[0-9A-Fa-f:.]+(%\w+)?\]|[^\[\]@:/?#]*)(:(?P<port>[^@/?#]*))?"
    r"(?P<path>/[^@?#]*)?(\?(?P<query>[^@#]*))?",
    re.DOTALL,
)
_UNQUOTED = re.compile(r"[@:/?#\s\x00-\x1f]|%(?![0-9A-Fa-f]{2})")


@dataclass(frozen=True)
class BrokerUrl:
    """A broker's address.

    Attributes:
        hosts: The server, or the sentinels that know the current server; none for a socket.
        socket: The path of a Unix socket.
        database: The number of the database.
        is_tls: Whether connections are encrypted.
        tls: The ``ssl_*`` options of connections, by the names that redis-py has.
        master: The name under which the sentinels know the server; None without sentinels.
        sentinel_password: The password of the sentinels themselves.
    """

    hosts: tuple[tuple[str, int], ...] = ()
    socket: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    database: int = 0
    is_tls: bool = False
    tls: dict[str, str] = field(default_factory=dict)
    master: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a URL; several sentinels are separated by semicolons.

        Raises:
            ValueError: It cannot work, with what to write instead.
        """
        pieces = [_Piece.parse(each) for each in _split(text.strip())]
        first, schemes = pieces[0], {piece.scheme for piece in pieces}
        if len(schemes) > 1:
            raise ValueError("mixes several schemes: write the same one before each sentinel")
        if len({(piece.user, piece.password) for piece in pieces if piece.password}) > 1:
            raise ValueError("has several passwords: all sentinels lead to one server")
        [scheme] = schemes
        options = {name: value for piece in pieces for name, value in piece.options.items()}
        login = next((piece for piece in pieces if piece.password), first)
        is_socket = scheme == "redis+socket"
        return cls(
            hosts=() if is_socket else tuple((piece.host, piece.port) for piece in pieces),
            socket=first.path if is_socket else None,
            user=login.user,
            password=login.password,
            database=0 if is_socket else max(piece.database for piece in pieces),
            is_tls=scheme in ("rediss", "sentinels"),
            tls={name: value for name, value in options.items() if name in _TLS_OPTIONS},
            master=options.get("sentinel_master"),
            sentinel_password=options.get("sentinel_password"),
        )

    @property
    def tls_options(self) -> dict[str, str]:
        """How a server's certificate is checked; empty without TLS."""
        return {"ssl_cert_reqs": "required", **self.tls} if self.is_tls else {}

    @property
    def tls_files(self) -> dict[str, Path]:
        """The files that the options of TLS name."""
        return {name: Path(value) for name, value in self.tls.items() if name != "ssl_cert_reqs"}

    @property
    def sentinel_options(self) -> dict[str, Any]:
        """The options of connections to the sentinels, by the names that redis-py has."""
        tls = {"ssl": True, **self.tls_options} if self.is_tls else {}
        timeouts = {
            "socket_timeout": _SENTINEL_TIMEOUT_S,
            "socket_connect_timeout": _SENTINEL_TIMEOUT_S,
        }
        return {"password": self.sentinel_password, **timeouts, **tls}

    @property
    def is_local(self) -> bool:
        """Whether it does not leave this machine."""
        return all(host in ("localhost", "127.0.0.1", "::1") for host, _ in self.hosts)

    def redacted(self) -> str:
        """Return the URL as ``for_celery`` does, with the word PASSWORD for its password."""
        has_password = self.password is not None
        return replace(self, password="PASSWORD" if has_password else None).for_celery()

    def for_celery(self) -> str:
        """Return the URL in kombu's form, with everything quoted and without options.

        kombu takes user and password of whichever sentinel it tries, so each has them.
        """
        login = quote(self.user or "", safe="")
        if self.password is not None:
            login += f":{quote(self.password, safe='')}"
        login += "@" if login else ""
        if self.socket is not None:
            return f"redis+socket://{login}{quote(self.socket)}"
        scheme = "sentinel" if self.master else "rediss" if self.is_tls else "redis"
        hosts = ((f"[{host}]" if ":" in host else host, port) for host, port in self.hosts)
        return ";".join(f"{scheme}://{login}{host}:{port}/{self.database}" for host, port in hosts)


def with_sentinel(text: str, master: str | None, password: str | None) -> str:
    """Return a checked URL, and with sentinels the name of their master and their password in it.

    Raises:
        ValueError: The URL cannot work.
    """
    text = text.strip()
    url = BrokerUrl.parse(text)
    if not re.match("sentinels?:", text, re.IGNORECASE) or url.master:
        return text
    if not master:
        raise ValueError(
            "names sentinels: set TRAINING_BROKER_SENTINEL_MASTER, their master's name"
        )
    options = {"sentinel_master": master} | ({"sentinel_password": password} if password else {})
    last = text.rpartition("://")[2].rpartition("@")[2]
    return f"{text}{'&' if '?' in last else '?'}{urlencode(options)}"


@dataclass(frozen=True)
class _Piece:
    """A URL with one host."""

    scheme: str
    user: str | None
    password: str | None
    host: str
    port: int
    path: str
    options: dict[str, str]

    @classmethod
    def parse(cls, text: str) -> Self:
        match = _URL.fullmatch(text)
        if match is None:
            raise ValueError(_why_unreadable(text))
        scheme = _scheme(match["scheme"])
        for part in (match["user"], match["password"]):
            if part is not None and _UNQUOTED.search(part):
                raise ValueError(
                    "has a special character in its user or password: quote it, such as %40 for "
                    "@, %3A for :, %2F for /, %23 for #, %3F for ?, %25 for %"
                )
        default = _SENTINEL_PORT if scheme.startswith("sentinel") else _SERVER_PORT
        piece = cls(
            scheme,
            unquote(match["user"] or "") or None,
            None if match["password"] is None else unquote(match["password"]),
            unquote(match["host"]).strip("[]"),
            _port(match["port"], default),
            unquote(match["path"] or ""),
            _options(match["query"] or ""),
        )
        piece.check()
        return piece

    def check(self) -> None:
        """Raise ``ValueError`` if host, path and options do not match the scheme."""
        if self.options.keys() & set(_TLS_OPTIONS) and self.scheme not in ("rediss", "sentinels"):
            raise ValueError("has ssl_ options without TLS: write rediss:// (sentinels://)")
        if self.scheme == "redis+socket":
            if self.host or len(self.path) < 2:
                raise ValueError("names no socket: write redis+socket:///PATH")
        elif ";" in self.host + self.path:
            raise ValueError("names several servers: write sentinel:// before each of them")
        elif not re.fullmatch(r"[\w.-]+|[0-9A-Fa-f:.]+(%\w+)?", self.host):
            raise ValueError(f"names no host: write {_EXAMPLE}")
        elif not re.fullmatch(r"/?|/[0-9]{1,5}", self.path):
            raise ValueError("has a path that is not the number of a database: write /0")

    @property
    def database(self) -> int:
        return int(self.path.strip("/") or 0)


def _split(text: str) -> list[str]:
    """Return the URLs of a list: a semicolon before a scheme separates them."""
    urls = re.split(r";(?=[A-Za-z][A-Za-z0-9+.-]*://)", text)
    if len(urls) > 1 and not text.lower().startswith("sentinel"):
        raise ValueError("names several servers: only sentinel:// takes them")
    return urls


def _why_unreadable(text: str) -> str:
    if "://" not in text:
        return f"has no scheme: write {_EXAMPLE}"
    return "is not a URL: write " + _EXAMPLE + ", and quote special characters in a password"


def _scheme(name: str) -> str:
    scheme = _ALIASES.get(name.lower(), name.lower())
    if scheme not in _SCHEMES:
        raise ValueError(
            f"has a scheme of another kind of broker: write {_EXAMPLE} for a Redis or Valkey "
            "server, rediss:// with TLS, redis+socket:///PATH, or sentinel://HOST:26379"
        )
    return scheme


def _port(text: str | None, default: int) -> int:
    if not text:
        return default
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise ValueError(
            "has a port that is not a number from 1 to 65535; a password is written before the "
            "host: redis://:PASSWORD@HOST:6379/0, with : quoted as %3A"
        )
    return int(text)


def _options(query: str) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    if options.keys() - {*_TLS_OPTIONS, *_SENTINEL_OPTIONS}:
        raise ValueError(f"has an unknown option; {', '.join(_TLS_OPTIONS)} are known")
    if options.get("ssl_cert_reqs", "required") not in ("required", "optional", "none"):
        raise ValueError("has an unknown ssl_cert_reqs: write required, or leave it out")
    return options
