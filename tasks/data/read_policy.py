"""The operator's rules for datasets: which ones a worker may read, and how large they may be."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

from tasks.escaping import shortened

OBJECT_SCHEMES = ("s3", "gs", "az")
"""The URL schemes of object stores."""
ANYWHERE = ",".join(["/", *(f"{scheme}://" for scheme in OBJECT_SCHEMES)])
"""The roots that allow all folders, and all buckets that the worker's credentials reach."""
_GIB = 2**30


class DeniedError(ValueError):
    """The operator's rules forbid reading a dataset; the message names it."""


@dataclass(frozen=True)
class ReadPolicy:
    """An operator's rules.

    Attributes:
        roots: Folders, and prefixes such as ``s3://bucket/people``, that datasets must be in; None
            allows all.
        hosts: Hosts that may have addresses that are not public, and may be used without TLS.
        max_bytes: The maximum size of one dataset, as downloaded and unpacked.
    """

    roots: tuple[str, ...] | None = None
    hosts: frozenset[str] = frozenset()
    max_bytes: int = 50 * _GIB

    def narrowed(self, roots: Sequence[str]) -> "ReadPolicy":
        """Return the rules for a tenant, who may read only what is below other roots, too.

        Args:
            roots: Folders and prefixes, as in ``roots``. An ``https://`` root allows its host, if
                these rules do.
        """
        named = {urlsplit(root).netloc for root in roots if root.startswith(("https:", "http:"))}
        allowed = tuple(root for root in roots if self._allows(root))
        return replace(self, roots=allowed, hosts=self.hosts & named)

    def _allows(self, root: str) -> bool:
        try:
            if "://" in root:
                self.check_url(root)
            else:
                self.resolved(Path(root))
        except (DeniedError, OSError):
            return False
        return True

    @cached_property
    def _folders(self) -> list[Path] | None:
        if self.roots is None:
            return None
        return [Path(root).resolve() for root in self.roots if "://" not in root]

    def resolved(self, path: Path) -> Path:
        """Return a local path with symbolic links resolved, which must be in a root.

        A program that may write in a root can change the path afterwards, so its file is opened
        by ``open_resolved``.

        Raises:
            DeniedError: The path is outside.
            OSError: The path cannot be resolved.
        """
        try:
            real = path.resolve()
        except (RuntimeError, ValueError) as error:  # a loop of links, a NUL
            raise FileNotFoundError(str(error)) from error
        folders = self._folders
        if folders is not None and not any(real.is_relative_to(folder) for folder in folders):
            raise DeniedError(
                f"{shortened(str(path))} is in none of the folders of TRAINING_DATA_ROOTS"
            )
        return real

    def check_url(self, url: str) -> None:
        """Refuse a URL outside all roots, since a worker's credentials may reach further.

        Raises:
            DeniedError: The URL is outside, or has a '..' in its path.
        """
        if ".." in urlsplit(url).path.split("/"):
            raise DeniedError(f"{url} has a '..' in its path")
        if self.roots is None:
            return
        prefixes = [root.rstrip("/") + "/" for root in self.roots if "://" in root]
        if not any(f"{url}/".startswith(prefix) for prefix in prefixes):
            raise DeniedError(f"{url} is below no prefix of TRAINING_DATA_ROOTS")
