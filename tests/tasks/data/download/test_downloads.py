import gzip
import hashlib
import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpcore2
import pytest

from tasks.data.download import downloads
from tasks.data.download import object_store as cloud
from tasks.data.download.downloads import Downloads
from tasks.data.download.protocol import DownloadError
from tasks.data.download.ssrf import AddressError, SsrfGuard, is_allowed
from tasks.data.read_policy import DeniedError, ReadPolicy
from tasks.hosts import is_public
from tasks.urls import redacted
from tests.tasks.data.site import DATA, Served, Site, serving


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "PAUSES_S", (0.0, 0.0, 0.0))


@pytest.fixture
def kept(site: Site, tmp_path: Path) -> Downloads:
    return Downloads(tmp_path / "kept", ReadPolicy(hosts=frozenset({site.host})))


def entry_of(tmp_path: Path, url: str) -> Path:
    return tmp_path / "kept" / hashlib.sha256(url.encode()).hexdigest()


Answers = list[tuple[int, int, int, str, tuple[str, int]]]


def resolve(monkeypatch: pytest.MonkeyPatch, name: str, *answers: Iterable[str]) -> list[str]:
    """Have a name resolve to the addresses of each answer in turn; the list of who asked."""
    real, asked, left = socket.getaddrinfo, list[str](), list(answers)

    def fake(host: str, port: int, *args: Any, **options: Any) -> Any:
        if host != name:
            return real(host, port, *args, **options)
        asked.append(host)
        found: Answers = [(2, 1, 6, "", (address, port)) for address in left.pop(0)]
        return found

    monkeypatch.setattr(socket, "getaddrinfo", fake)
    return asked


def connections(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let nothing be connected to; the list of what was to be."""
    made: list[str] = []

    def connect(self: object, host: str, *args: object, **options: object) -> None:
        made.append(host)
        raise httpcore2.ConnectError("not in this test")

    monkeypatch.setattr(httpcore2.SyncBackend, "connect_tcp", connect)
    return made


def test_a_file_is_downloaded_with_progress(site: Site, kept: Downloads) -> None:
    site.files["/a.zip"] = Served()
    reported: list[tuple[int, int | None]] = []
    path = kept.fetch(site.url(), on_progress=lambda so_far, size: reported.append((so_far, size)))
    assert path.read_bytes() == DATA
    assert reported[0] == (0, len(DATA))
    assert reported[-1] == (len(DATA), len(DATA))
    assert reported == sorted(reported)
    assert len(reported) < 10


def test_an_unchanged_file_is_not_sent_again(site: Site, kept: Downloads) -> None:
    site.files["/a.zip"] = Served()
    first = kept.fetch(site.url())
    assert kept.fetch(site.url()) == first
    assert first.read_bytes() == DATA
    assert [asked.sent for asked in site.asked] == [len(DATA), 0]


def test_a_file_without_an_etag_is_requested_by_date(site: Site, kept: Downloads) -> None:
    date = "Thu, 01 Jan 2026 00:00:00 GMT"
    site.files["/a.zip"] = Served(etag=None, headers={"Last-Modified": date})
    kept.fetch(site.url())
    site.files["/a.zip"].status = 304
    kept.fetch(site.url())
    assert site.asked[-1].headers["if-modified-since"] == date


def test_a_server_that_ignores_conditions_is_not_read_twice(site: Site, kept: Downloads) -> None:
    site.files["/a.zip"] = Served(etag='W/"1"')
    path = kept.fetch(site.url())
    (path.parent / "data").write_bytes(b"x" * len(DATA))
    site.files["/a.zip"].headers["ETag"] = site.files["/a.zip"].etag or ""
    assert kept.fetch(site.url()).read_bytes() == b"x" * len(DATA)


def test_a_changed_file_is_downloaded_again(site: Site, kept: Downloads) -> None:
    site.files["/a.zip"] = Served()
    kept.fetch(site.url())
    site.files["/a.zip"] = Served(b"new", '"2"')
    assert kept.fetch(site.url()).read_bytes() == b"new"


def test_a_stored_file_of_the_expected_digest_is_not_requested(site: Site, kept: Downloads) -> None:
    site.files["/a.zip"] = Served()
    digest = hashlib.sha256(DATA).hexdigest()
    kept.fetch(site.url(), sha256=digest)
    kept.fetch(site.url(), sha256=digest.upper())
    assert len(site.asked) == 1


def test_a_damaged_entry_is_downloaded_again(site: Site, kept: Downloads, tmp_path: Path) -> None:
    site.files["/a.zip"] = Served()
    path = kept.fetch(site.url())
    path.write_bytes(b"short")
    assert kept.fetch(site.url()).read_bytes() == DATA
    (path.parent / "meta.json").write_text("no JSON")
    assert kept.fetch(site.url()).read_bytes() == DATA
    assert [asked.sent for asked in site.asked] == [len(DATA)] * 3


def test_an_interrupted_download_resumes(site: Site, kept: Downloads) -> None:
    site.files["/a.zip"] = Served(cuts=[1_000_000, 1_500_000])
    assert kept.fetch(site.url()).read_bytes() == DATA
    assert sent(site) == len(DATA)
    ranges = [asked.headers.get("range") for asked in site.asked]
    assert ranges == [None, "bytes=1000000-", "bytes=2500000-"]


def test_the_next_fetch_resumes_a_failed_one(site: Site, kept: Downloads) -> None:
    site.files["/a.zip"] = Served(cuts=[100, 100, 100, 100])
    with pytest.raises(DownloadError, match="was interrupted 4 times: the response is incomplete"):
        kept.fetch(site.url())
    assert kept.fetch(site.url()).read_bytes() == DATA
    assert site.asked[-1].headers["range"] == "bytes=400-"


def test_a_file_that_changes_is_downloaded_from_the_start(site: Site, kept: Downloads) -> None:
    site.files["/a.zip"] = Served(cuts=[1000] * 4)
    with pytest.raises(DownloadError, match="was interrupted"):
        kept.fetch(site.url())
    site.files["/a.zip"] = Served(DATA[::-1], '"2"')
    assert kept.fetch(site.url()).read_bytes() == DATA[::-1]
    assert site.asked[-1].headers["if-range"] == '"1"'


def test_without_a_strong_etag_no_download_resumes(site: Site, kept: Downloads) -> None:
    site.files["/a.zip"] = Served(etag='W/"1"', cuts=[1000])
    assert kept.fetch(site.url()).read_bytes() == DATA
    assert "range" not in site.asked[-1].headers


@pytest.mark.parametrize(
    "wrong", ["bytes 0-9/10", "bytes 1000-1999/3145728", "bytes 1000-1/x", "items", "bytes */5"]
)
def test_a_wrong_range_restarts_the_download(site: Site, kept: Downloads, wrong: str) -> None:
    site.files["/a.zip"] = Served(cuts=[1000], content_range=wrong)
    assert kept.fetch(site.url()).read_bytes() == DATA
    assert "range" not in site.asked[-1].headers


def test_a_busy_server_is_retried(site: Site, kept: Downloads) -> None:
    site.files["/a.zip"] = Served(status=503)
    with pytest.raises(
        DownloadError, match="was interrupted 4 times: the server responded with 503"
    ) as reported:
        kept.fetch(site.url())
    assert reported.value.retryable
    assert len(site.asked) == 4


def test_a_missing_file_is_not_retried(site: Site, kept: Downloads) -> None:
    with pytest.raises(
        DownloadError, match=r"/a\.zip cannot be downloaded: the server responded with 404"
    ):
        kept.fetch(site.url())
    assert len(site.asked) == 1


@pytest.mark.parametrize("says_length", [True, False])
def test_a_file_that_is_too_large_is_refused(site: Site, tmp_path: Path, says_length: bool) -> None:
    access = ReadPolicy(hosts=frozenset({site.host}), max_bytes=1000)
    site.files["/a.zip"] = Served(b"x" * 1001, says_length=says_length)
    with pytest.raises(DownloadError, match="larger than 1,000 bytes"):
        Downloads(tmp_path / "kept", access).fetch(site.url())
    assert not list(entry_of(tmp_path, site.url()).iterdir())


def test_a_large_file_is_refused_before_it_is_read(site: Site, tmp_path: Path) -> None:
    access = ReadPolicy(hosts=frozenset({site.host}), max_bytes=1000)
    site.files["/a.zip"] = Served(b"", headers={"Content-Length": "1001"}, says_length=False)
    reported: list[int] = []
    with pytest.raises(DownloadError, match="larger than 1,000 bytes"):
        Downloads(tmp_path, access).fetch(
            site.url(), on_progress=lambda n, size: reported.append(n)
        )
    assert not reported


def test_a_file_of_another_digest_is_not_kept(site: Site, kept: Downloads, tmp_path: Path) -> None:
    site.files["/a.zip"] = Served()
    with pytest.raises(DownloadError, match=f"has the SHA-256 .{{64}}, not {'0' * 64}"):
        kept.fetch(site.url(), sha256="0" * 64)
    assert not list(entry_of(tmp_path, site.url()).iterdir())


def test_a_compressed_response_is_refused(site: Site, kept: Downloads) -> None:
    site.files["/a.zip"] = Served(gzip.compress(b"x"), headers={"Content-Encoding": "gzip"})
    with pytest.raises(DownloadError, match="has the content encoding 'gzip'"):
        kept.fetch(site.url())
    assert site.asked[-1].headers["accept-encoding"] == "identity"


def test_cookies_are_not_kept(site: Site, kept: Downloads) -> None:
    cookie = {"Set-Cookie": "session=hidden; Path=/"}
    redirect = {"Location": "/b.zip", **cookie}
    site.files["/a.zip"] = Served(b"", etag=None, status=302, headers=redirect)
    site.files["/b.zip"] = Served(headers=cookie)
    kept.fetch(site.url())
    kept.fetch(site.url())
    assert len(site.asked) == 4
    assert all("cookie" not in asked.headers for asked in site.asked)


def test_proxies_of_the_environment_are_not_used(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    site.files["/a.zip"] = Served()
    downloads = Downloads(tmp_path / "kept", ReadPolicy(hosts=frozenset({site.host})))
    assert downloads.fetch(site.url()).read_bytes() == DATA


def test_redirects_are_followed(site: Site, kept: Downloads) -> None:
    site.files["/x/a"] = Served(b"", status=302, headers={"Location": "../y?k=1"})
    utf_8 = site.url("/z%20é?q=ä b").encode().decode("latin-1")
    site.files["/y"] = Served(b"", status=307, headers={"Location": utf_8})
    site.files["/z%20%C3%A9"] = Served(b"here")
    assert kept.fetch(site.url("/x/a")).read_bytes() == b"here"
    assert [asked.path for asked in site.asked] == ["/x/a", "/y?k=1", "/z%20%C3%A9?q=%C3%A4%20b"]


def test_a_redirect_loop_is_an_error(site: Site, kept: Downloads) -> None:
    site.files["/a.zip"] = Served(b"", status=301, headers={"Location": "/a.zip"})
    with pytest.raises(DownloadError, match="redirects more than 5 times"):
        kept.fetch(site.url())
    assert len(site.asked) == 6


@pytest.mark.parametrize(
    ("location", "problem"),
    [
        ("http://127.0.0.1:1/x", "is not encrypted"),
        ("http://169.254.169.254/latest/meta-data", "is not encrypted"),
        ("https://127.0.0.1:1/x", "127.0.0.1, which is not public"),
        ("https://2130706433/x", "127.0.0.1, which is not public"),
        ("https://169.254.169.254/latest", "169.254.169.254, which is not public"),
        ("https://[fd00:ec2::254]/latest", "fd00:ec2::254, which is not public"),
        ("//localhost/x", "is not encrypted"),
        ("file:///etc/passwd", "cannot be downloaded"),
        ("s3://bucket/x", "cannot be downloaded"),
        ("https://me:hidden@host/x", "a user or a password"),
        ("http://[", "an invalid URL"),
    ],
)
def test_redirects_are_checked_like_the_url(
    site: Site, kept: Downloads, location: str, problem: str
) -> None:
    site.files["/a.zip"] = Served(b"", status=302, headers={"Location": location})
    with pytest.raises(DownloadError, match=problem) as caught:
        kept.fetch(site.url())
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://host/x",
        "/etc/passwd",
        "",
        "https://",
        "https://:1/",
        "https:x",
        "https://[/",
        "https://host:99999/",
        "https://h o/",
        "https://\x00/",
        "memory:///x",
        "http://public.example/x",
        "https://me@host/",
        f"https://{'a' * 70}.example/",
    ],
)
def test_other_urls_are_refused(kept: Downloads, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = connections(monkeypatch)
    with pytest.raises(DownloadError):
        kept.fetch(url)
    assert not made


PRIVATE = [
    "127.0.0.1",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "255.255.255.255",
    "224.0.0.1",
    "240.0.0.1",
    "192.0.2.1",
    "168.63.129.16",
    "192.0.0.192",
    "::1",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "fd00:ec2::254",
    "fec0::1",
    "ff02::1",
    "2001:db8::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::127.0.0.1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "2001:0:5d38:6ab8::80ff:fffe",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_a_host_with_a_private_address_is_refused(
    kept: Downloads, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    resolve(monkeypatch, "images.example", ["93.184.215.14", address])
    made = connections(monkeypatch)
    with pytest.raises(DownloadError) as caught:
        kept.fetch("https://images.example/x?token=hidden")
    assert str(caught.value) == (
        "https://images.example/x must not be requested: "
        f"images.example has the address {address}, which is not public; "
        "the operator may allow the host in TRAINING_DATA_HOSTS"
    )
    assert not made


@pytest.mark.parametrize(
    "address",
    [
        "93.184.215.14",
        "8.8.8.8",
        "2606:4700::1111",
        "::ffff:8.8.8.8",
        "2002:808:808::1",
        "64:ff9b::808:808",
    ],
)
def test_public_addresses_are_allowed(address: str) -> None:
    assert is_public(ip_address(address))


def test_the_checked_address_is_connected_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = resolve(monkeypatch, "rebinding.example", ["93.184.215.14"], ["127.0.0.1"])
    made = connections(monkeypatch)
    with pytest.raises(httpcore2.ConnectError, match="not in this test"):
        SsrfGuard(frozenset()).connect_tcp("rebinding.example", 443)
    assert (made, len(asked)) == (["93.184.215.14"], 1)


def test_the_addresses_of_a_host_are_tried_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch, "two.example", ["2606:4700::1111", "8.8.8.8", "8.8.8.8"])
    made = connections(monkeypatch)
    with pytest.raises(httpcore2.ConnectError):
        SsrfGuard(frozenset()).connect_tcp("two.example", 443)
    assert made == ["2606:4700::1111", "8.8.8.8"]


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 70 + ".example"])
def test_a_host_without_an_address_is_an_error(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    def fail(*args: object, **options: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    if host.endswith(".invalid"):
        monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(httpcore2.ConnectError, match="cannot be resolved"):
        SsrfGuard(frozenset()).connect_tcp(host, 443)


def test_an_address_error_is_a_value_error() -> None:
    with pytest.raises(AddressError, match="TRAINING_DATA_HOSTS") as caught:
        SsrfGuard(frozenset({"127.0.0.1:2"})).connect_tcp("127.0.0.1", 1)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("entry", "host", "port", "expected"),
    [
        ("NAS.local", "nas.LOCAL", 80, True),
        ("nas.local:8080", "nas.local", 8080, True),
        ("nas.local:8080", "nas.local", 80, False),
        ("nas.local", "other.nas.local", 80, False),
        ("::1", "::1", 80, True),
        ("[::1]:80", "::1", 80, True),
        ("::1:80", "::1", 80, False),
    ],
)
def test_hosts_are_allowed_by_name_or_by_name_and_port(
    entry: str, host: str, port: int, expected: bool
) -> None:
    assert is_allowed(host, port, frozenset({entry})) is expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://me:hidden@host:8/a?key=hidden#hidden", "https://host:8/a"),
        ("https://me:hidden#@host/", "https://..."),
        ("https://me:hidden/x@host/", "https://..."),
        ("https:me:hidden@host/", "https:..."),
        ("s3://key:hidden@bucket/x?X-Amz-Signature=hidden", "s3://bucket/x"),
        ("https://[::1]:8/a", "https://[::1]:8/a"),
        ("hidden", "..."),
    ],
)
def test_urls_are_redacted(url: str, expected: str) -> None:
    assert redacted(url) == expected


@pytest.mark.parametrize(
    "served",
    [
        Served(status=404),
        Served(status=500),
        Served(cuts=[1, 1, 1, 1]),
        Served(headers={"Content-Encoding": "br"}),
        Served(status=302),
        Served(status=302, headers={"Location": "https://127.0.0.1/x?token=hidden"}),
        Served(status=302, headers={"Location": "/y\x01hidden"}),
        Served(status=304),
        Served(says_length=False, data=DATA * 2),
    ],
)
def test_messages_have_no_secret_of_the_url(site: Site, tmp_path: Path, served: Served) -> None:
    site.files["/a.zip"] = served
    access = ReadPolicy(hosts=frozenset({site.host}), max_bytes=len(DATA))
    with pytest.raises(DownloadError) as caught:
        Downloads(tmp_path, access).fetch(site.url("/a.zip?token=hidden#hidden"))
    assert "hidden" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_concurrent_fetches_download_a_file_once(site: Site, kept: Downloads) -> None:
    site.files["/a.zip"] = Served()
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(kept.fetch, [site.url()] * 8))
    assert [path.read_bytes() == DATA for path in paths] == [True]
    assert sent(site) == len(DATA)


def test_the_least_recently_used_file_is_evicted(site: Site, tmp_path: Path) -> None:
    kept = Downloads(tmp_path / "kept", ReadPolicy(hosts=frozenset({site.host}), max_bytes=1000))
    for name in "abcd":
        site.files[f"/{name}"] = Served(name.encode() * 600)
    paths = {name: kept.fetch(site.url(f"/{name}")) for name in "abc"}
    kept.fetch(site.url("/a"))
    paths["d"] = kept.fetch(site.url("/d"))
    assert [name for name, path in paths.items() if path.exists()] == ["a", "c", "d"]


def test_an_unwritable_folder_is_an_error(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    kept = Downloads(tmp_path / "file" / "kept", ReadPolicy(hosts=frozenset({site.host})))
    with pytest.raises(DownloadError, match=r"cannot be stored in .*: Not a directory"):
        kept.fetch(site.url())


def test_metadata_is_stored_beside_the_file(site: Site, kept: Downloads, tmp_path: Path) -> None:
    site.files["/a.zip"] = Served(headers={"Last-Modified": "then"})
    kept.fetch(site.url())
    entry = entry_of(tmp_path, site.url())
    assert sorted(path.name for path in entry.iterdir()) == ["data", "meta.json"]
    assert json.loads((entry / "meta.json").read_text()) == {
        "etag": '"1"',
        "last_modified": "then",
        "size": len(DATA),
        "sha256": hashlib.sha256(DATA).hexdigest(),
    }


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate by openssl")
def test_tls_verifies_the_host_of_the_url(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    named = ["-subj", "/CN=x", "-addext", "subjectAltName=DNS:images.example"]
    files = ["-keyout", str(key), "-out", str(certificate), "-days", "2"]
    subprocess.run(["openssl", "req", *kind, *named, *files], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    resolve_all(monkeypatch, "images.example", "other.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    # A second server: the listening socket of one that runs cannot be exchanged.
    tls = Site()
    tls.socket = context.wrap_socket(tls.socket, server_side=True)
    tls.files["/a.zip"] = Served(b"here")
    port = tls.server_port
    hosts = frozenset({f"images.example:{port}", f"other.example:{port}"})
    with serving(tls):
        kept = Downloads(tmp_path / "kept", ReadPolicy(hosts=hosts))
        assert kept.fetch(f"https://images.example:{port}/a.zip").read_bytes() == b"here"
        with pytest.raises(DownloadError, match="Hostname mismatch"):
            kept.fetch(f"https://other.example:{port}/a.zip")


def resolve_all(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Have names resolve to this machine."""
    real: Callable[..., Any] = socket.getaddrinfo

    def fake(host: str, *args: Any, **options: Any) -> Any:
        return real("127.0.0.1" if host in names else host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", fake)


MODIFIED = {"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}


def sent(site: Site) -> int:
    return sum(asked.sent for asked in site.asked)


def test_an_object_is_downloaded_and_not_again(bucket: Site, tmp_path: Path) -> None:
    bucket.files["/people/set/a%20b.zip"] = Served(headers=MODIFIED)
    kept = Downloads(tmp_path, ReadPolicy())
    for _ in range(2):
        assert kept.fetch("s3://people/set/a b.zip").read_bytes() == DATA
    assert sent(bucket) == len(DATA)
    bucket.files["/people/set/a%20b.zip"] = Served(b"new", '"2"', headers=MODIFIED)
    assert kept.fetch("s3://people/set/a b.zip").read_bytes() == b"new"


def test_an_interrupted_object_resumes(bucket: Site, tmp_path: Path) -> None:
    bucket.files["/people/a"] = Served(headers=MODIFIED)
    kept = Downloads(tmp_path / "kept", ReadPolicy())

    def stop(so_far: int, size: int | None) -> None:
        if so_far > 2**20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept.fetch("s3://people/a", on_progress=stop)
    part = (entry_of(tmp_path, "s3://people/a") / "part").stat().st_size
    assert 0 < part < len(DATA)
    assert kept.fetch("s3://people/a").read_bytes() == DATA
    assert bucket.asked[-1].headers["range"] == f"bytes={part}-{len(DATA) - 1}"
    assert bucket.asked[-1].headers["if-match"] == '"1"'


def test_an_object_is_requested_in_ranges(
    bucket: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloud, "_REQUEST_BYTES", 2**21)
    bucket.files["/people/a"] = Served(headers=MODIFIED)
    bucket.files["/people/empty"] = Served(b"", headers=MODIFIED)
    kept = Downloads(tmp_path, ReadPolicy())
    assert kept.fetch("s3://people/a").read_bytes() == DATA
    assert [asked.sent for asked in bucket.asked] == [0, 2**21, 2**20]
    assert kept.fetch("s3://people/empty").read_bytes() == b""


def test_an_object_that_changes_is_downloaded_from_the_start(
    bucket: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloud, "_REQUEST_BYTES", 2**20)
    bucket.files["/people/a"] = Served(headers=MODIFIED)

    def change(so_far: int, size: int | None) -> None:
        bucket.files["/people/a"] = Served(DATA[::-1], '"2"', headers=MODIFIED)

    path = Downloads(tmp_path, ReadPolicy()).fetch("s3://people/a", on_progress=change)
    assert path.read_bytes() == DATA[::-1]


def test_an_object_that_is_too_large_is_not_requested(bucket: Site, tmp_path: Path) -> None:
    bucket.files["/people/a"] = Served(headers=MODIFIED)
    with pytest.raises(DownloadError, match="s3://people/a is larger than 9 bytes"):
        Downloads(tmp_path, ReadPolicy(max_bytes=9)).fetch("s3://people/a")
    assert sent(bucket) == 0


def test_a_missing_or_forbidden_object_is_an_error(bucket: Site, tmp_path: Path) -> None:
    kept = Downloads(tmp_path, ReadPolicy())
    with pytest.raises(DownloadError, match=r"there is no s3://people/a$"):
        kept.fetch("s3://people/a")
    bucket.files["/people/a"] = Served(b"", status=403)
    with pytest.raises(DownloadError, match="credentials may not read s3://people/a"):
        kept.fetch("s3://people/a")


def test_the_objects_below_a_prefix_are_listed(bucket: Site, tmp_path: Path) -> None:
    for path in ("/people/set/b.png", "/people/set/a/c.png", "/people/setter", "/people/x"):
        bucket.files[path] = Served()
    kept = Downloads(tmp_path, ReadPolicy())
    assert kept.list_objects("s3://people/set/") == ["a/c.png", "b.png"]
    assert kept.list_objects("s3://people") == ["set/a/c.png", "set/b.png", "setter", "x"]
    with pytest.raises(DownloadError, match="https://host/x cannot be listed"):
        kept.list_objects("https://host/x?token=hidden")


def test_objects_are_read_below_the_roots_only(bucket: Site, tmp_path: Path) -> None:
    bucket.files["/people/set/a"] = Served(headers=MODIFIED)
    kept = Downloads(tmp_path, ReadPolicy(roots=("s3://people/set",)))
    assert kept.fetch("s3://people/set/a").read_bytes() == DATA
    asked = len(bucket.asked)
    for url in ("s3://people/setter/a", "s3://other/a", "gs://people/set/a"):
        with pytest.raises(DeniedError, match="TRAINING_DATA_ROOTS"):
            kept.fetch(url)
        with pytest.raises(DeniedError, match="TRAINING_DATA_ROOTS"):
            kept.list_objects(url)
    assert len(bucket.asked) == asked


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3:///x",
        "s3://me:hidden@people/x",
        "s3://people/x?X-Amz-Signature=hidden",
        "s3://people/a/../x",
        "s3://people/./x",
        "s3://people//x",
        "az://c/a\nhidden",
        "S3://b/x",
    ],
)
def test_a_malformed_object_url_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(DownloadError) as caught:
        Downloads(tmp_path, ReadPolicy()).fetch(url)
    parts = urlsplit(url)
    assert "hidden" not in str(caught.value) or "hidden" in parts.path
