"""Tenants' secrets: files that the operator keeps, which jobs refer to by name.

A job's secret is ``TRAINING_SECRETS_DIR/tenants/TENANT/NAME``: never one of another tenant, and
never a secret of the fleet itself.
"""

import logging
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, SecretStr

from tasks.strict_model import SAFE_NAME

logger = logging.getLogger(__name__)

TENANTS_FOLDER = "tenants"
"""The folder of all tenants' secrets."""
_MAX_BYTES = 64 * 1024
_OTHERS = stat.S_IROTH | stat.S_IWOTH


def header_secret(secret: SecretStr) -> SecretStr:
    """Refuse what no header of a request can have: the libraries' errors would quote it.

    Raises:
        ValueError: It has white space, or other characters than those of ASCII that print.
    """
    if not re.fullmatch(r"[\x21-\x7e]+", secret.get_secret_value()):
        raise ValueError("must be one word of ASCII characters")
    return secret


HeaderSecret = Annotated[SecretStr, AfterValidator(header_secret)]


class SecretError(ValueError):
    """A tenant's secret cannot be read; the message names it, and never what is in it."""


@dataclass(frozen=True)
class TenantSecrets:
    """Reads tenants' secrets.

    Attributes:
        folder: The folder of ``TRAINING_SECRETS_DIR``; None if this process has none.
    """

    folder: Path | None = None

    def read(self, tenant: str, name: str) -> str:
        """Return a tenant's secret, without white space around it.

        Raises:
            SecretError: There is none, or it cannot be used.
        """
        if self.folder is None:
            raise SecretError("this worker has no TRAINING_SECRETS_DIR")
        where = f"{TENANTS_FOLDER}/{tenant}/{name} of TRAINING_SECRETS_DIR"
        try:
            data = self._bytes(tenant, name, where)
            text = data.decode().strip()
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise SecretError(f"{where} cannot be read: {reason}") from error
        except RuntimeError as error:
            raise SecretError(f"{where} is a link to itself") from error
        except UnicodeDecodeError as error:
            raise SecretError(f"{where} is not UTF-8 text") from error
        if not text:
            raise SecretError(f"{where} is empty")
        return text

    def _bytes(self, tenant: str, name: str, where: str) -> bytes:
        if not re.fullmatch(SAFE_NAME, tenant) or not re.fullmatch(SAFE_NAME, name):
            raise SecretError(f"{where} is no name of a secret")
        own = (Path(self.folder or "") / TENANTS_FOLDER).resolve() / tenant
        # Kubernetes makes each secret a link inside its folder; a link must not leave it.
        path = (own / name).resolve()
        if own.is_symlink() or not path.is_relative_to(own):
            raise SecretError(f"{where} is a link out of the tenant's folder")
        # Without O_NONBLOCK, a pipe would wait for its writer.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        with os.fdopen(os.open(path, flags), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
                raise SecretError(f"{where} is not a file of at most {_MAX_BYTES:,} bytes")
            if status.st_mode & _OTHERS:
                logger.warning("%s is open to other users of this machine: chmod 600", where)
            return file.read(_MAX_BYTES)
