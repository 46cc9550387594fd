"""Celery's consumer, which sets refused messages aside.

Celery's own logs their whole text, which may hold signed URLs.
"""

from typing import Any

from celery.worker.consumer import consumer


class Consumer(consumer.Consumer):  # type: ignore[misc]
    """A consumer whose channels are those of this package."""

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Set a message aside that cannot be decoded."""
        message.channel.refuse(message, f"cannot be decoded: {type(exc).__name__}")

    def on_unknown_message(self, body: object, message: Any) -> None:
        """Set a message aside that is no task."""
        message.channel.refuse(message, "is no task")

    def on_unknown_task(self, body: object, message: Any, exc: Exception) -> None:
        """Set a message aside whose task no worker has."""
        message.channel.refuse(message, "has an unknown task")

    def on_invalid_task(self, body: object, message: Any, exc: Exception) -> None:
        """Set a message aside that Celery refuses."""
        message.channel.refuse(message, f"is no valid task: {type(exc).__name__}")
