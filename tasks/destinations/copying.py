"""Copies a job's results to its destinations, each by the copier of its type."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from tasks.access.tenant_secrets import SecretError, TenantSecrets
from tasks.destinations.bucket import BucketCopier
from tasks.destinations.hub import HubCopier
from tasks.destinations.results import CheckStop, CopyError, Results
from tasks.errors import Problem
from tasks.events import PublishedCopy
from tasks.jobs.destinations import Destination, HubDestination
from tasks.jobs.job import TrainingJob


class Copier(Protocol):
    """Copies results to one destination."""

    def check(self) -> None:
        """Check that the destination can be written to.

        Raises:
            CopyError: It cannot.
        """

    def copy(self, results: Results, fence: Callable[[], object]) -> PublishedCopy:
        """Copy the results; safe to repeat.

        Args:
            results: The results.
            fence: Called right before each change; its error leaves the rest undone.

        Raises:
            CopyError: They cannot be copied.
        """
        ...


@dataclass(frozen=True)
class Copiers:
    """Makes the copiers of destinations.

    Attributes:
        secrets: Tenants' secrets.
        hosts: Hosts that may have addresses that are not public, and may be used without TLS.
        hub_endpoint: See ``WorkerContext``.
    """

    secrets: TenantSecrets
    hosts: frozenset[str] = frozenset()
    hub_endpoint: str | None = None

    def problems(self, job: TrainingJob, check_stop: CheckStop) -> Iterator[Problem]:
        """Yield what keeps a job's results from each of its destinations."""
        for number, destination in enumerate(job.publish_to):
            try:
                self._copier(job.tenant, destination, check_stop).check()
            except CopyError as error:
                place = f"publish_to.{number}"
                location = f"{place}.{error.option}" if error.option else place
                yield Problem(location, str(error), retryable=error.retryable)

    def copies(
        self,
        results: Results,
        earlier: Iterable[PublishedCopy],
        fence: Callable[[], object],
        check_stop: CheckStop = lambda: None,
    ) -> Iterator[tuple[PublishedCopy, CopyError | None]]:
        """Yield what becomes of each destination, with the error of a failed one.

        Args:
            results: The results.
            earlier: Copies that were made before, which are not made again.
            fence: See ``Copier.copy``.
            check_stop: Called while requests run.
        """
        done = {(copy.type, copy.target): copy for copy in earlier if copy.error is None}
        for destination in results.job.publish_to:
            target = _target(destination)
            if (destination.type, target) in done:
                yield done[destination.type, target], None
                continue
            try:
                copier = self._copier(results.job.tenant, destination, check_stop)
                yield copier.copy(results, fence), None
            except CopyError as error:
                failed = PublishedCopy(type=destination.type, target=target, error=str(error))
                yield failed, error

    def _copier(self, tenant: str, destination: Destination, check_stop: CheckStop) -> Copier:
        if isinstance(destination, HubDestination):
            token = self._secret(tenant, destination.hub_token, "hub_token")
            return HubCopier(destination, token, check_stop, self.hub_endpoint)
        name = destination.bucket_credentials
        secret = self._secret(tenant, name, "bucket_credentials")
        return BucketCopier(destination, secret, self.hosts, check_stop)

    def _secret(self, tenant: str, name: str, option: str) -> str:
        """Return a tenant's secret.

        Raises:
            CopyError: There is none.
        """
        try:
            return self.secrets.read(tenant, name)
        except SecretError as error:
            raise CopyError(str(error), option) from error


def _target(destination: Destination) -> str:
    """Return what a copy says of its destination."""
    if isinstance(destination, HubDestination):
        return destination.hub_model_id
    return destination.bucket_url
