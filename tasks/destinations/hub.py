"""Copies of results to model repositories of the Hugging Face Hub."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils.tqdm import disable_progress_bars
from pydantic import SecretStr

from tasks.access.tenant_secrets import header_secret
from tasks.data.download.background import call_in_background
from tasks.data.download.pace import MIN_BYTES_PER_S, WINDOW_S
from tasks.destinations.model_card import model_card, sample_path, settings_file
from tasks.destinations.results import CheckStop, CopyError, Results
from tasks.escaping import escaped, shortened
from tasks.events import PublishedCopy
from tasks.jobs.destinations import HubDestination
from tasks.transient import is_transient

T = TypeVar("T")

_REQUEST_TIMEOUT_S = 120.0
_MAX_REASON = 500
# Another commit came between, or the repository is being made.
_CONFLICTS = (409, 412)
_NOT_PRIVATE = "is public; set hub_private_repo false to publish there, or name another repository"


@dataclass(frozen=True)
class HubCopier:
    """Copies results to one repository, with a tenant's token and no other.

    Attributes:
        token: The token; it is in no message.
        check_stop: Called while requests run.
        endpoint: The Hub's address; None is the public one, or the one that ``HF_ENDPOINT`` names.
    """

    destination: HubDestination
    token: str = field(repr=False)
    check_stop: CheckStop = lambda: None
    endpoint: str | None = None

    @cached_property
    def _api(self) -> HfApi:
        try:
            header_secret(SecretStr(self.token))
        except ValueError as error:
            message = f"the secret {self.destination.hub_token}: {error}"
            raise CopyError(message, "hub_token") from None
        disable_progress_bars()
        return HfApi(endpoint=self.endpoint, token=self.token)

    @property
    def _repo(self) -> str:
        return self.destination.hub_model_id

    def check(self) -> None:
        """Check that the token may write to the repository, or may make it.

        Raises:
            CopyError: It may not, or the Hub is unavailable.
        """
        user = self._request(self._api.whoami)
        self._check_role(user)
        if self._head() is None:
            self._check_owner(user)
            return
        self._request(lambda: self._api.auth_check(self._repo, write=True))

    def copy(self, results: Results, fence: Callable[[], object]) -> PublishedCopy:
        """Commit the results; nothing is committed if the repository has the same files.

        Args:
            results: The results.
            fence: Called right before the commit; its error leaves the repository as it is.

        Raises:
            CopyError: They cannot be committed.
        """
        api, private = self._api, self.destination.hub_private_repo
        head = self._head()
        if head is None:
            fence()
            self._request(lambda: api.create_repo(self._repo, private=private, exist_ok=True))
            head = self._head()
        if head is None:
            raise CopyError(f"{self._repo} does not exist after it was made", retryable=True)
        operations = self._operations(results)
        size = sum(operation.upload_info.size for operation in operations)
        timeout_s = WINDOW_S + size / MIN_BYTES_PER_S
        self._request(
            lambda: api.preupload_lfs_files(self._repo, operations, free_memory=False), timeout_s
        )
        fence()
        commit = self._request(
            lambda: api.create_commit(
                self._repo,
                operations,
                commit_message=f"Upload {results.job.name}",
                commit_description=f"Job {results.job_id}",
                # Fails if another commit came between: nothing is replaced unseen.
                parent_commit=head,
            )
        )
        url = f"{api.endpoint}/{self._repo}"
        return PublishedCopy(type="HUB", target=self._repo, url=url, commit=commit.oid)

    def _operations(self, results: Results) -> list[CommitOperationAdd]:
        files: dict[str, Path | bytes] = {
            file.name: results.local(file) for file in results.final_files()
        }
        files |= {sample_path(sample): results.local(sample.file) for sample in results.samples()}
        files["training.json"] = settings_file(results)
        files["README.md"] = model_card(results, self.destination).encode()
        return [CommitOperationAdd(path, data) for path, data in files.items()]

    def _head(self) -> str | None:
        """Return the repository's newest commit; None if the token sees no such repository.

        Raises:
            CopyError: It is public, and is to be private.
        """
        try:
            info = self._request(lambda: self._api.model_info(self._repo), is_missing_known=False)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            return None
        if self.destination.hub_private_repo and not info.private:
            raise CopyError(f"the repository {self._repo} {_NOT_PRIVATE}", "hub_private_repo")
        return info.sha

    def _check_role(self, user: dict[str, Any]) -> None:
        match user:
            case {"auth": {"accessToken": {"role": "read"}}}:
                message = f"the token {self.destination.hub_token} may only read; make one of "
                raise CopyError(f"{message}type write", "hub_token")

    def _check_owner(self, user: dict[str, Any]) -> None:
        """Check who may make the repository."""
        owner = self._repo.partition("/")[0]
        names = [user.get("name"), *(it.get("name") for it in user.get("orgs") or ())]
        if owner.lower() not in [str(name).lower() for name in names]:
            message = f"the token {self.destination.hub_token} belongs to {names[0]}, "
            raise CopyError(f"{message}who is not {owner} and not a member of it", "hub_model_id")

    def _request(
        self,
        request: Callable[[], T],
        timeout_s: float = _REQUEST_TIMEOUT_S,
        *,
        is_missing_known: bool = True,
    ) -> T:
        with self._typed_errors(is_missing_known):
            return call_in_background(request, self.check_stop, timeout_s)

    @contextmanager
    def _typed_errors(self, is_missing_known: bool) -> Iterator[None]:
        """Turn the Hub's errors into those of a copy."""
        try:
            yield
        except CopyError:
            raise
        # RuntimeError: an upload failed, for a reason that its cause has. The last line is for a
        # proxy's page instead of the Hub's answer.
        except (
            *(httpx2.HTTPError, OSError, RuntimeError),
            *(ValueError, LookupError, TypeError, AttributeError),
        ) as error:
            cause = error.__cause__ if isinstance(error, RuntimeError) else error
            status = getattr(getattr(cause, "response", None), "status_code", None)
            if (
                isinstance(error, RepositoryNotFoundError)
                and status == 404
                and not is_missing_known
            ):
                raise
            raise self._copy_error(error, cause, status) from error

    def _copy_error(
        self, error: Exception, cause: BaseException | None, status: int | None
    ) -> CopyError:
        token = self.destination.hub_token
        if status == 401:
            return CopyError(f"the Hub does not accept the token {token}", "hub_token")
        if status == 403:
            message = f"the token {token} may not write to {self._repo}"
            return CopyError(message, "hub_token")
        if status == 404:
            message = f"the Hub has no {self._repo} that the token {token} may write to"
            return CopyError(message, "hub_model_id")
        is_unknown_upload = isinstance(error, RuntimeError) and status is None
        retryable = is_transient(cause if isinstance(cause, Exception) else error)
        whole = str(cause or error).partition("\n")[0].replace(self.token, "...")
        reason = shortened(escaped(whole), _MAX_REASON)
        return CopyError(
            f"the Hub request for {self._repo} failed: {reason}",
            retryable=retryable or status in _CONFLICTS or is_unknown_upload,
        )
