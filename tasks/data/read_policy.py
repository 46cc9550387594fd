"""Which datasets a worker may read, and how much of them: the operator's rules."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

CLOUD_SCHEMES = ("s3", "gs", "az")
# All folders, and all buckets that the worker's credentials reach.
ANYWHERE = ",".join(["/", *(f"{scheme}://" for scheme in CLOUD_SCHEMES)])
_GIB = 2**30


class DeniedError(ValueError):
    """A dataset may not be read by the operator's rules; says which."""


@dataclass(frozen=True)
class ReadPolicy:
    """An operator's rules.

    Attributes:
        roots: Folders, and prefixes such as ``s3://bucket/people``, that datasets may lie in;
            None: anywhere.
        hosts: Hosts that may be asked although their addresses are not public, or without TLS.
        most_bytes: The most that one source may take, as it comes and unpacked.
    """

    roots: tuple[str, ...] | None = None
    hosts: frozenset[str] = frozenset()
    most_bytes: int = 50 * _GIB

    def narrowed(self, roots: Sequence[str]) -> "ReadPolicy":
        """The rules for somebody who may read less: only what lies below ``roots``, too.

        Args:
            roots: As those of the rules; an address opens its host, where the rules allow it.
        """
        named = {urlsplit(root).netloc for root in roots if root.startswith(("https:", "http:"))}
        kept = tuple(root for root in roots if self._allows(root))
        return replace(self, roots=kept, hosts=self.hosts & named)

    def _allows(self, root: str) -> bool:
        check = self.check_cloud if "://" in root else lambda it: self.check_path(Path(it))
        try:
            check(root)
        except DeniedError:
            return False
        return True

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
