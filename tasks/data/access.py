"""Which data sets a worker may read, and how much of them: the operator's rules."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

CLOUD_SCHEMES = ("s3", "gs", "az")
# All folders, and all buckets that the worker's credentials reach.
ANYWHERE = ",".join(["/", *(f"{scheme}://" for scheme in CLOUD_SCHEMES)])
_GIB = 2**30


class DeniedError(ValueError):
    """A data set may not be read by the operator's rules; says which."""


@dataclass(frozen=True)
class Access:
    """An operator's rules.

    Attributes:
        roots: Folders, and prefixes such as ``s3://bucket/people``, that data sets may lie in;
            None: anywhere.
        hosts: Hosts that may be asked although their addresses are not public, or without TLS.
        most_bytes: The most that one source may take, as it comes and unpacked.
    """

    roots: tuple[str, ...] | None = None
    hosts: frozenset[str] = frozenset()
    most_bytes: int = 50 * _GIB

    def check_path(self, path: Path) -> None:
        """Refuse a local path outside all roots, links followed.

        Raises:
            DeniedError: It is.
        """
        if self.roots is None:
            return
        folders = [Path(root).resolve() for root in self.roots if "://" not in root]
        if not any(path.resolve().is_relative_to(folder) for folder in folders):
            raise DeniedError(f"{path} is in none of the folders of TRAINING_DATA_ROOTS")

    def check_cloud(self, url: str) -> None:
        """Refuse an object's URL outside all roots: a worker's credentials may reach further.

        Raises:
            DeniedError: It is, or goes up by ``..``.
        """
        if ".." in urlsplit(url).path.split("/"):
            raise DeniedError(f"{url} goes up by '..'")
        if self.roots is None:
            return
        prefixes = [root.rstrip("/") + "/" for root in self.roots if "://" in root]
        if not any(f"{url}/".startswith(prefix) for prefix in prefixes):
            raise DeniedError(f"{url} is below no prefix of TRAINING_DATA_ROOTS")
