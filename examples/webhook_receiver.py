"""Receive a job's webhooks, behind a proxy that speaks TLS.

    pip install standardwebhooks
    WEBHOOK_SECRETS=whsec_... python webhook_receiver.py 8081

While a secret is rotated, name both, separated by a comma. Answer at once, and work later: a
delivery that is not answered within 15 seconds is sent again.
"""

import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError

MAX_BYTES = 1 << 20
# A backend keeps both in its database: the ids of handled deliveries, and each job's newest number.
SEEN = set[str]()
NEWEST = dict[str, int]()


class Receiver(BaseHTTPRequestHandler):
    """Verifies each delivery, and handles each event once."""

    def do_POST(self) -> None:
        """Answer 204 to what is ours, 401 to anything else."""
        body = self.rfile.read(min(int(self.headers.get("content-length", 0)), MAX_BYTES))
        event = verified(body, {name.lower(): value for name, value in self.headers.items()})
        if event is not None and self.headers["webhook-id"] not in SEEN:
            SEEN.add(self.headers["webhook-id"])
            self.handle_event(event["type"], event["data"])
        self.send_response(401 if event is None else 204)
        self.end_headers()

    def handle_event(self, kind: str, data: dict[str, Any]) -> None:
        """Handle an event; deliveries may arrive in another order than the events happened."""
        job_id, sequence = data["job_id"], data["sequence"] or 0
        if kind == "job.progress" and sequence < NEWEST.get(job_id, 0):
            return
        NEWEST[job_id] = max(sequence, NEWEST.get(job_id, 0))
        print(kind, job_id, data.get("error") or data.get("result") or "", flush=True)


def verified(body: bytes, headers: dict[str, str]) -> Any:
    """Return the event of a delivery that one of the secrets has signed; None for any other."""
    for secret in os.environ["WEBHOOK_SECRETS"].split(","):
        try:
            return Webhook(secret).verify(body, headers)
        except WebhookVerificationError:
            continue
    return None


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
