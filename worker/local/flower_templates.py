"""Flower's own templates, with a link of ours in their navigation. Flower has no plug-ins."""

import logging
from html import escape
from pathlib import Path

from flower.urls import settings
from tornado.template import DictLoader

logger = logging.getLogger(__name__)

_NAVIGATION = "navbar.html"
_LIST_END = "</ul>"


def with_link(name: str, url: str) -> None:
    """Let this process's Flower show a link after its own."""
    folder = Path(settings["template_path"])
    templates = {path.name: path.read_text("utf-8") for path in folder.glob("*.html")}
    navigation = templates.get(_NAVIGATION, "")
    if _LIST_END not in navigation:
        logger.warning("this version of Flower has no place for a link to %s", name)
        return
    # Braces begin what Tornado would run.
    text = f'<a class="nav-link" href="{escape(url).replace("{", "%7B")}">{escape(name)}</a>'
    item = f'<li class="nav-item">{text}</li>'
    templates[_NAVIGATION] = navigation.replace(_LIST_END, item + _LIST_END, 1)
    settings["template_loader"] = DictLoader(templates)
