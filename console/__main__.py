"""The entry point: ``python -P -m console``, which ``training-worker console`` runs."""

import resource
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn

from console.app import make_app
from console.connections import HeadersInTime
from console.gate import MAX_BODY_BYTES
from console.services.services import Services, open_services
from tasks.errors import EXIT_CODES, JobError
from tasks.process.file_modes import keep_files_private
from tasks.process.logging_setup import set_up_logging
from tasks.process.signals import drain_on_hangup
from tasks.settings.settings import load_settings

# Open pages would keep the server from ending.
_SHUTDOWN_TIMEOUT_S = 3
_MAX_HEADER_BYTES = 2**15
# A request takes a socket, and a stream of events a connection to the broker too.
_MIN_FILES = 4096


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
    keep_files_private()
    set_up_logging(settings.log_format, "console", settings.log_level)
    try:
        services = open_services(settings, settings.broker_url.get_secret_value())
    except JobError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_CODES[error.code]
    _allow_files()
    drain_on_hangup()
    # NiceGUI writes the files of pages there first; /tmp may be in memory.
    tempfile.tempdir = str(settings.resolved_scratch_dir / "console")
    Path(tempfile.tempdir).mkdir(parents=True, exist_ok=True)
    server = uvicorn.Server(server_config(services))
    with suppress(KeyboardInterrupt):
        server.run()
    return 0 if server.started else 1


def server_config(services: Services) -> uvicorn.Config:
    """Return how the console is served."""
    settings = services.settings
    return uvicorn.Config(
        make_app(services),
        host=settings.console_address,
        port=settings.console_port,
        root_path=urlsplit(settings.console_base_url).path,
        proxy_headers=bool(settings.listed_trusted_proxies),
        forwarded_allow_ips=list(settings.listed_trusted_proxies),
        # uvicorn's faster implementation reads headers of any size into memory.
        http=HeadersInTime,
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
        ws_max_size=MAX_BODY_BYTES,
        server_header=False,
        log_config=None,
        access_log=False,
        # Lines of opened connections would log the sockets' secrets.
        log_level="warning",
        timeout_graceful_shutdown=_SHUTDOWN_TIMEOUT_S,
    )


def _allow_files() -> None:
    """Raise this process's limit of open files, where its system's default is low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MIN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MIN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    sys.exit(main())
