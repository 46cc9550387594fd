"""Copies of results to tenants' own buckets, with the tenants' credentials and no others."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    GenericError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import S3Store
from pydantic import Field, SecretStr, ValidationError

from tasks.access.tenant_secrets import HeaderSecret
from tasks.data.download.background import call_in_background
from tasks.data.download.pace import MIN_BYTES_PER_S, WINDOW_S
from tasks.data.read_policy import DeniedError, ReadPolicy
from tasks.destinations.endpoints import EndpointError, check_endpoint
from tasks.destinations.results import CheckStop, CopyError, Results
from tasks.escaping import escaped, shortened
from tasks.events import PublishedCopy
from tasks.jobs.destinations import BucketDestination
from tasks.strict_model import StrictModel

T = TypeVar("T")

_REQUEST_TIMEOUT_S = 60.0
# One request takes at most 5 GB, and obstore's own limit of time is for each request.
_MULTIPART_BYTES = 64 * 2**20
_DIGEST = "sha256"
# A server's page about an error may be endless.
_MAX_REASON = 500
# No object has this name: the request shows whether the credentials may look for objects.
_PROBE = ".training-worker"
_Word = Annotated[str, Field(min_length=1, max_length=2000, pattern=r"^[\x21-\x7e]+$")]


class BucketCredentials(StrictModel):
    """A secret with the credentials of an S3 bucket, as JSON."""

    roots: Annotated[tuple[str, ...], Field(min_length=1, max_length=100)]
    """The prefixes, such as ``s3://bucket/people``, that the tenant's results may be copied to."""

    access_key_id: _Word

    secret_access_key: SecretStr

    session_token: HeaderSecret | None = None

    region: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,40}$")] = "us-east-1"

    endpoint: _Word | None = None
    """The address of a server other than Amazon's: ``https://`` and public, unless
    TRAINING_DATA_HOSTS allows its host."""

    @property
    def address(self) -> str:
        """The server's address; always given to obstore, or the worker's own would be used."""
        return self.endpoint or f"https://s3.{self.region}.amazonaws.com"


@dataclass(frozen=True)
class BucketCopier:
    """Copies results below one address of a bucket.

    Attributes:
        secret: The text of the tenant's secret.
        hosts: Hosts that may have addresses that are not public, and may be used without TLS.
        check_stop: Called while requests run.
    """

    destination: BucketDestination
    secret: str = field(repr=False)
    hosts: frozenset[str] = frozenset()
    check_stop: CheckStop = lambda: None

    def check(self) -> None:
        """Check the credentials, as far as a request that changes nothing can.

        Raises:
            CopyError: They cannot be used for this address, or the bucket is unavailable.
        """
        self._is_there(f"{self._prefix}/{_PROBE}", "")

    def copy(self, results: Results, fence: Callable[[], object]) -> PublishedCopy:
        """Copy all published files, and the manifest last; see ``HubCopier.copy``."""
        folder = f"{self._prefix}/{results.job_id}"
        for file in results.files:
            fence()
            self._put(f"{folder}/{file.name}", results.local(file), file.sha256, file.size)
        manifest = results.store.get(results.manifest_key)
        fence()
        self._put_manifest(f"{folder}/manifest.json", manifest)
        url = f"{self.destination.bucket_url.rstrip('/')}/{results.job_id}"
        return PublishedCopy(type="BUCKET", target=self.destination.bucket_url, url=url)

    @property
    def _prefix(self) -> str:
        return urlsplit(self.destination.bucket_url).path.strip("/")

    @cached_property
    def _credentials(self) -> BucketCredentials:
        name = self.destination.bucket_credentials
        try:
            found = BucketCredentials.model_validate_json(self.secret)
        except ValidationError as error:
            details = error.errors(include_url=False, include_input=False, include_context=False)
            wrong = "; ".join(f"{'.'.join(map(str, it['loc']))}: {it['msg']}" for it in details[:5])
            # The reason that the text is no JSON may quote it.
            message = "is not a JSON object" if details[0]["type"] == "json_invalid" else wrong
            raise CopyError(f"the secret {name}: {message}", "bucket_credentials") from None
        try:
            ReadPolicy(roots=found.roots).check_url(self.destination.bucket_url)
        except DeniedError:
            message = f"is below no root of the secret {name}"
            raise CopyError(f"{self.destination.bucket_url} {message}", "bucket_url") from None
        return found

    @cached_property
    def _store(self) -> S3Store:
        credentials = self._credentials
        self._check_address(credentials.address)
        token = credentials.session_token
        provided: Any = {
            "access_key_id": credentials.access_key_id,
            "secret_access_key": credentials.secret_access_key.get_secret_value(),
            "token": token.get_secret_value() if token else None,
            "expires_at": None,
        }
        # Every value that the worker's environment could set is given here, above all the
        # credentials: its own must reach no other server.
        return S3Store(
            urlsplit(self.destination.bucket_url).netloc,
            config={
                "endpoint": credentials.address,
                "region": credentials.region,
                "virtual_hosted_style_request": False,
                "skip_signature": False,
                "request_payer": False,
            },
            client_options={"allow_http": credentials.address.startswith("http:"), "timeout": "1h"},
            retry_config={"max_retries": 1},
            credential_provider=lambda: provided,
        )

    def _check_address(self, address: str) -> None:
        """Check that a server may be connected to.

        Raises:
            CopyError: Its address is not public or has no TLS, and the operator does not allow it.
        """
        try:
            check_endpoint(address, self.hosts)
        except EndpointError as error:
            name = self.destination.bucket_credentials
            message = f"the endpoint of the secret {name}: {error}"
            raise CopyError(message, "bucket_credentials", retryable=error.retryable) from None

    def _put(self, key: str, path: Path, digest: str, size: int) -> None:
        """Write a file, unless it is there already."""
        if self._is_there(key, digest):
            return
        put = partial(obstore.put, self._store, key, path, attributes={_DIGEST: digest})
        is_large = size > _MULTIPART_BYTES
        write = partial(put, use_multipart=True) if is_large else partial(put, mode="create")
        try:
            self._request(write, WINDOW_S + size / MIN_BYTES_PER_S)
        except AlreadyExistsError:
            self._is_there(key, digest)

    def _put_manifest(self, key: str, data: bytes) -> None:
        try:
            self._request(lambda: obstore.put(self._store, key, data, mode="create"))
        except AlreadyExistsError:
            if not self._request(lambda: self._has_content(key, data)):
                raise CopyError(f"{key} is there already, with other content") from None

    def _has_content(self, key: str, data: bytes) -> bool:
        """Compare an object, which may be endless, with what it should be."""
        found = bytearray()
        for chunk in obstore.get(self._store, key).stream(min_chunk_size=1):
            found += chunk
            if len(found) > len(data):
                break
        return found == data

    def _is_there(self, key: str, digest: str) -> bool:
        """Return whether a file is in the bucket.

        Raises:
            CopyError: Another file is there, which is not replaced.
        """
        found = self._request(lambda: self._attributes(key))
        if found is not None and found.get(_DIGEST) != digest:
            raise CopyError(f"{key} is there already, with other content")
        return found is not None

    def _attributes(self, key: str) -> Mapping[Any, str] | None:
        """Return what the bucket knows of an object; None if it has no such object."""
        try:
            return obstore.get(self._store, key, options={"head": True}).attributes
        except FileNotFoundError:
            return None

    def _request(self, request: Callable[[], T], timeout_s: float = _REQUEST_TIMEOUT_S) -> T:
        with self._typed_errors():
            return call_in_background(request, self.check_stop, timeout_s)

    @contextmanager
    def _typed_errors(self) -> Iterator[None]:
        url, name = self.destination.bucket_url, self.destination.bucket_credentials
        try:
            yield
        except AlreadyExistsError:
            raise
        except FileNotFoundError as error:
            raise CopyError(f"{url} does not exist", "bucket_url") from error
        except (PermissionDeniedError, UnauthenticatedError) as error:
            message = f"the credentials {name} may not write to {url}"
            raise CopyError(message, "bucket_credentials") from error
        except (GenericError, TimeoutError) as error:
            message = f"{url} cannot be written: {_first_line(error)}"
            raise CopyError(message, retryable=True) from error
        except BaseError as error:
            raise CopyError(f"{url} cannot be written: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """Return the beginning of an error, without queries, which may hold signatures."""
    return shortened(escaped(str(error).partition("\n")[0].partition("?")[0]), _MAX_REASON)
