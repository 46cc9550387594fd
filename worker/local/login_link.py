"""The login link of this machine's operator: for ``up``, and for ``login-link`` while it runs."""

from tasks.access.api_keys import ApiKeys
from tasks.access.login_links import LOGIN_LINK_TTL, LoginLinks
from tasks.errors import ApiKeysError
from tasks.settings.settings import Settings
from tasks.state.connection import connect


def new_login_link(settings: Settings, broker_url: str) -> str:
    """Return the address of a new login link, and how long it works.

    Every user who can read the file of the console's key can make one.

    Raises:
        ApiKeysError: The file of the console's key cannot be read, or its key is not valid.
    """
    path = settings.console_key_file
    try:
        key = path.read_text("utf-8").strip()
    except OSError as error:
        raise ApiKeysError(path, f"cannot be read: {error.strerror}") from error
    if ApiKeys(settings.api_keys_file).find(key) is None:
        problem = "has no valid key; restart 'training-worker up', which makes a new one"
        raise ApiKeysError(path, problem)
    with connect(broker_url) as client:
        token = LoginLinks(client).create(key)
    minutes = LOGIN_LINK_TTL.total_seconds() / 60
    address = f"{settings.console_base_url}/login?once={token}"
    return f"{address} (works once, within {minutes:g} minutes)"
