"""Broker URLs: their grammar, and that no message has a piece of a password in it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.state.broker_url import BrokerUrl, with_sentinel

SPECIALS = "@:/#?[]%;&= "
# Letters and digits that occur in no message.
PIECES = st.text("QXZ789é", min_size=3, max_size=6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no scheme"),
        ("127.0.0.1:6379", "no scheme"),
        ("amqp://127.0.0.1/", "redis://HOST:6379/0"),
        ("memory://", "another kind of broker"),
        ("http://127.0.0.1:1/", "another kind of broker"),
        ("redis://", "no host"),
        ("redis:///0", "no host"),
        ("redis+socket://host/path", "names no socket"),
        ("redis://host/abc", "write /0"),
        ("redis://host/-1", "write /0"),
        ("redis://host/0?foo=1", "unknown option"),
        ("redis://host/0#1", "is not a URL"),
        ("redis://host:0/0", "1 to 65535"),
        ("redis://host:70000/0", "1 to 65535"),
        ("redis://user:hunter2", "1 to 65535"),
        ("redis://a:1;redis://b:2/0", "several servers"),
        ("redis://a;b/0", "several servers"),
        ("sentinel://a;b", "sentinel:// before each"),
        ("sentinel://a;sentinels://b", "several schemes"),
        ("sentinel://:one@a;sentinel://:two@b", "several passwords"),
        ("redis://host/0?ssl_ca_certs=/ca", "without TLS"),
        ("rediss://host/0?ssl_cert_reqs=maybe", "unknown ssl_cert_reqs"),
    ],
)
def test_a_url_that_cannot_work_has_a_remedy(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BrokerUrl.parse(text)


@pytest.mark.parametrize(
    ("text", "celery"),
    [
        ("redis://host", "redis://host:6379/0"),
        ("redis://host/0\n", "redis://host:6379/0"),
        ("REDIS://host:1/3", "redis://host:1/3"),
        ("valkey://:pw@host/", "redis://:pw@host:6379/0"),
        ("valkeys://u:p%40ss@host", "rediss://u:p%40ss@host:6379/0"),
        ("rediss://host/0?ssl_ca_certs=/ca", "rediss://host:6379/0"),
        ("redis://[::1]:7/0", "redis://[::1]:7/0"),
        ("unix:///run/s", "redis+socket:///run/s"),
        ("redis+socket://u:p@/run/s", "redis+socket://u:p@/run/s"),
        ("redis://:a;b@host", "redis://:a%3Bb@host:6379/0"),
    ],
)
def test_kombu_gets_a_url_with_everything_quoted(text: str, celery: str) -> None:
    assert BrokerUrl.parse(text).for_celery() == celery


def test_every_sentinel_has_the_servers_login() -> None:
    text = with_sentinel("sentinel://u:p%3Bw@a;sentinel://[::1]:7", "main", "its own")
    url = BrokerUrl.parse(text)
    assert url.hosts == (("a", 26379), ("::1", 7))
    assert (url.master, url.sentinel_password, url.password) == ("main", "its own", "p;w")
    assert url.for_celery() == "sentinel://u:p%3Bw@a:26379/0;sentinel://u:p%3Bw@[::1]:7/0"
    assert with_sentinel(text, "main", "its own") == text
    with pytest.raises(ValueError, match="TRAINING_BROKER_SENTINEL_MASTER"):
        with_sentinel("sentinel://a", None, None)


def test_tls_reaches_servers_and_sentinels() -> None:
    text = with_sentinel("sentinels://a/0?ssl_ca_certs=/ca", "main", None)
    url = BrokerUrl.parse(text)
    tls = {"ssl_cert_reqs": "required", "ssl_ca_certs": "/ca"}
    assert url.tls_options == tls
    assert url.sentinel_options.items() >= {"ssl": True, **tls}.items()


@given(
    scheme=st.sampled_from(["redis", "rediss", "sentinel", "valkey", "amqp", "", "redis+socket"]),
    pieces=st.lists(PIECES, min_size=1, max_size=4),
    specials=st.lists(st.sampled_from(SPECIALS), min_size=3, max_size=3),
    place=st.sampled_from(
        ["{s}://:{p}@host/0", "{s}://u:{p}@host:1", "{s}://{p}@host", "{p}", "{s}://{p}", "{p}://host",
         "{s}://host:{p}", "{s}://host/{p}", "{s}://host/0?{p}", "{s}://host/0?{p}=1", "{s}://a;{p}"]
    ),
)  # fmt: skip
def test_no_message_has_a_piece_of_a_password(
    scheme: str, pieces: list[str], specials: list[str], place: str
) -> None:
    password = pieces[0] + "".join(
        special + piece for special, piece in zip(specials, pieces[1:], strict=False)
    )
    problem = ""
    try:
        BrokerUrl.parse(place.format(s=scheme, p=password))
    except ValueError as error:
        problem = str(error)
    assert not [piece for piece in pieces if piece in problem]


@given(st.text(min_size=1).filter(lambda text: not {*text} & {*"\0\n"}))
def test_a_quoted_password_arrives_whole(password: str) -> None:
    written = BrokerUrl(hosts=(("host", 1),), password=password).for_celery()
    assert BrokerUrl.parse(written).password == password
    assert "password" not in repr(BrokerUrl.parse(written))
