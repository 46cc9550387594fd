"""The entry point: ``python -P -m console``, which ``training-worker console`` runs."""

import sys
from urllib.parse import urlsplit

import uvicorn

from console.app import make_app
from console.services.services import open_services
from tasks.errors import EXIT_CODES, JobError
from tasks.logging_setup import set_up_logging
from tasks.settings.settings import load_settings

# Open pages would keep the server from ending.
_SHUTDOWN_TIMEOUT_S = 3


def main() -> int:
    """Serve the console until it is stopped.

    Returns:
        The exit code.
    """
    try:
        settings = load_settings()
    except JobError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_CODES[error.code]
    if settings.broker_url is None:
        sys.stderr.write(
            "error: no broker URL; run 'training-worker console', which finds the broker\n"
        )
        return 2
    set_up_logging(settings.log_format, "console")
    try:
        services = open_services(settings, settings.broker_url.get_secret_value())
    except JobError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_CODES[error.code]
    uvicorn.run(
        make_app(services),
        host=settings.console_address,
        port=settings.console_port,
        root_path=urlsplit(settings.console_base_url).path,
        server_header=False,
        log_config=None,
        access_log=False,
        # Lines of opened connections would log the sockets' secrets.
        log_level="warning",
        timeout_graceful_shutdown=_SHUTDOWN_TIMEOUT_S,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
