"""The backup of a broker that runs, step by step as ``docs/guides/backup.md`` has it."""

import shutil
import threading
from pathlib import Path

from tests.deploy.servers import PATIENCE_S, Broker
from tests.waiting import wait_until


def test_what_was_there_before_the_copy_is_there_after_the_restore(tmp_path: Path) -> None:
    stop = threading.Event()
    with Broker(tmp_path / "old") as old, old.client("admin") as admin:
        admin.mset({f"training:before:{number}": "there" for number in range(1000)})

        def go_on_writing() -> None:
            with old.client("worker") as worker:
                while not stop.is_set():
                    worker.incr("training:meanwhile")

        writer = threading.Thread(target=go_on_writing)
        writer.start()
        try:
            admin.config_set("auto-aof-rewrite-percentage", 0)
            admin.bgrewriteaof()
            wait_until(
                lambda: not admin.info("persistence")["aof_rewrite_in_progress"],
                timeout_s=PATIENCE_S,
                description="a fresh file",
            )
            restored = tmp_path / "new" / "data" / "appendonlydir"
            shutil.copytree(old.data / "appendonlydir", restored)
        finally:
            stop.set()
            writer.join()
    with Broker(tmp_path / "new") as new, new.client("admin") as admin:
        assert len(admin.keys("training:before:*")) == 1000
        assert admin.exists("training:meanwhile")
