"""Our parts of this process's Flower, which has no plug-ins: links, the queues, host names.

The queues replace Flower's page of the broker: that counts messages, and jobs wait in tenant queues
before they have one.
"""

import asyncio
import logging
import re
from collections.abc import Collection
from datetime import timedelta
from html import escape
from pathlib import Path
from typing import Any

from flower.api.tasks import GetQueueLengths
from flower.app import Flower
from flower.urls import handlers
from flower.urls import settings as flower_settings
from flower.views.broker import BrokerView
from flower.views.tasks import TaskView
from redis import Redis, RedisError
from tornado import web
from tornado.template import DictLoader

from tasks.hosts import is_allowed_host
from tasks.state.fleet_overview import read_overview

logger = logging.getLogger(__name__)

_QUEUES = "flower_queues.html"
# Flower's templates, each with a text beside which ours is put.
_NAVIGATION, _LINKS_END = "navbar.html", "</ul>"
_TASK, _ACTIONS = "task.html", '<div class="detail-actions">'
_JOB_LINK = (
    '{% if job_url %}<a class="btn btn-primary" href="{{ job_url }}">Open the job</a>{% end %}'
)
_JOB = re.compile(r"job=([\w.-]+) ", re.ASCII)


def extend_flower(client: Redis, console_url: str | None, host_names: Collection[str]) -> None:
    """Extend this process's Flower, before it starts.

    Args:
        client: A connection to the broker that decodes responses.
        console_url: The console's address; None without a console.
        host_names: The host names to answer to, besides ``localhost`` and IP addresses.
    """
    check_hosts(host_names)
    flower_settings.update(training_client=client, training_console=console_url)
    flower_settings["template_loader"] = DictLoader(templates(console_url))
    ours = {BrokerView: QueuesView, GetQueueLengths: QueueLengthsView, TaskView: JobTaskView}
    handlers[:] = [_with_view(handler, ours) for handler in handlers]


def templates(console_url: str | None) -> dict[str, str]:
    """Return Flower's templates with our page and links."""
    folder = Path(flower_settings["template_path"])
    texts = {path.name: path.read_text("utf-8") for path in folder.glob("*.html")}
    texts[_QUEUES] = Path(__file__).with_name(_QUEUES).read_text("utf-8")
    if console_url is not None:
        # Tornado would run what is in braces.
        address = escape(console_url).replace("{", "%7B")
        link = f'<li class="nav-item"><a class="nav-link" href="{address}">Console</a></li>'
        _replace(texts, _NAVIGATION, _LINKS_END, link + _LINKS_END)
        _replace(texts, _TASK, _ACTIONS, _ACTIONS + _JOB_LINK)
    return texts


def check_hosts(names: Collection[str]) -> None:
    """Let this process's Flower refuse other host names; see ``is_allowed_host``."""
    find_handler = Flower.find_handler

    def find_for_allowed_host(self: Any, request: Any, **options: Any) -> Any:
        if is_allowed_host(request.host, names):
            return find_handler(self, request, **options)
        return self.get_handler_delegate(request, web.ErrorHandler, {"status_code": 421})

    Flower.find_handler = find_for_allowed_host


class QueuesView(BrokerView):  # type: ignore[misc]
    """The page of queues, workers and the dead-letter queue."""

    @web.authenticated
    async def get(self) -> None:
        """Show the fleet as it is now."""
        overview = None
        try:
            overview = await asyncio.to_thread(read_overview, self.settings["training_client"])
        except RedisError as error:
            logger.warning("cannot read the broker: %s", error)
        self.render(
            _QUEUES,
            broker_url=self.application.broker_uri,
            overview=overview,
            console_url=self.settings["training_console"],
            duration=_duration,
        )


class QueueLengthsView(GetQueueLengths):  # type: ignore[misc]
    """The API of queue lengths; a queue's messages include the jobs in its tenant queues."""

    @web.authenticated
    async def get(self) -> None:
        """Answer with every queue."""
        overview = await asyncio.to_thread(read_overview, self.settings["training_client"])
        queues = [{"name": queue.name, "messages": queue.waiting} for queue in overview.queues]
        self.write({"active_queues": queues})


class JobTaskView(TaskView):  # type: ignore[misc]
    """The page of a task, with a link to its job in the console."""

    def render(self, template_name: str, **values: Any) -> None:
        """Render a page of Flower's; only that of a task has the task."""
        console_url, task = self.settings["training_console"], values.get("task")
        job = _JOB.match(getattr(task, "args", None) or "")
        values["job_url"] = f"{console_url}/jobs/{job[1]}" if console_url and job else None
        super().render(template_name, **values)


def _with_view(handler: Any, ours: dict[Any, Any]) -> Any:
    """Return a handler of Flower's, a tuple or a tornado ``url``, with our view if there is one."""
    if isinstance(handler, web.url):
        view = ours.get(handler.handler_class, handler.handler_class)
        return web.url(handler.regex.pattern, view, handler.kwargs, handler.name)
    return (handler[0], ours.get(handler[1], handler[1]), *handler[2:])


def _replace(texts: dict[str, str], name: str, old: str, new: str) -> None:
    if old in texts.get(name, ""):
        texts[name] = texts[name].replace(old, new, 1)
    else:
        logger.warning("this version of Flower has no place for a link in %s", name)


def _duration(seconds: float | None) -> str:
    return "-" if seconds is None else str(timedelta(seconds=round(seconds)))
