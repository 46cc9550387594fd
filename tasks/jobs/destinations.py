"""Where a job's results are copied besides the fleet's own store: the Hub, or a tenant's bucket."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StrictBool

from tasks.jobs.field_metadata import HUB_ID, Location
from tasks.strict_model import SAFE_NAME, StrictModel

MAX_DESTINATIONS = 4
"""The most copies of one job's results; each is an upload of all its weights."""
_TOKEN_PREFIX = "hf_"
# The Hub's own rules beside HUB_ID.
_NO_REPO_NAME = re.compile(r"--|\.\.|[.-]$|\.(git|ipynb)$|/[.-]")
_BUCKET_URL = r"s3://[a-z0-9][a-z0-9.-]{1,62}(/[\w.+=@-]+)+/?"
_LICENSE = r"^[a-z0-9][a-z0-9.+-]*$"


def _secret_name(name: str) -> str:
    """Refuse what is a secret rather than its name, and never repeat it in the message."""
    if name.startswith(_TOKEN_PREFIX) or len(name) > 100 or not re.fullmatch(SAFE_NAME, name):
        raise ValueError(
            "must be the name of a secret that the operator keeps for the tenant: letters, digits, "
            "'-' and '_'; never the secret itself"
        )
    return name


def _repository(name: str) -> str:
    if name.count("/") != 1 or not HUB_ID.fullmatch(name) or _NO_REPO_NAME.search(name):
        raise ValueError("is not a repository of the Hub; the form is owner/name")
    return name


def _license(name: str) -> str:
    if not re.fullmatch(_LICENSE, name):
        raise ValueError("is not a license as the Hub spells them, such as apache-2.0")
    return name


def _bucket_url(url: str) -> str:
    if not re.fullmatch(_BUCKET_URL, url) or not {".", ".."}.isdisjoint(url.split("/")):
        raise ValueError("is not an address in a bucket; the form is s3://bucket/prefix")
    return url.rstrip("/")


SecretName = Annotated[str, AfterValidator(_secret_name), Location.SECRET]


class HubDestination(StrictModel):
    """A model repository on the Hugging Face Hub: the weights with a model card and samples."""

    type: Literal["HUB"] = "HUB"
    """Selects this kind of destination."""

    hub_model_id: Annotated[str, AfterValidator(_repository), Location.HUB_REPO]
    """The repository, ``owner/name``; it is made if it does not exist. Files of the same names are
    replaced in a new commit; no other file is changed."""

    hub_token: SecretName
    """The name of the tenant's secret with a token that may write to the repository. The token
    itself is never part of a job."""

    hub_private_repo: StrictBool = True
    """Whether the repository is private. A public one that exists is refused unless this is
    false."""

    license: (
        Annotated[str, Field(max_length=60), AfterValidator(_license), Location.NONE] | None
    ) = None
    """The license in the model card, as the Hub spells it. Null: the base model's, if known."""


class BucketDestination(StrictModel):
    """A bucket of the tenant, on S3 or a server that speaks its protocol: all published files."""

    type: Literal["BUCKET"] = "BUCKET"
    """Selects this kind of destination."""

    bucket_url: Annotated[str, AfterValidator(_bucket_url), Location.BUCKET]
    """``s3://bucket/prefix``. The files are in a folder of the job's id below it, the manifest
    last. No object is replaced."""

    bucket_credentials: SecretName
    """The name of the tenant's secret with the bucket's credentials, and with the prefixes that
    they are for."""


Destination = Annotated[HubDestination | BucketDestination, Field(discriminator="type")]
