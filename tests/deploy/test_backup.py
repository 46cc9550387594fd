"""The backup of a running broker, with the steps of ``docs/guides/backup.md``."""

import shutil
import threading
from pathlib import Path

from tests.deploy.servers import PATIENCE_S, Broker
from tests.waiting import wait_until


def test_restored_broker_has_all_earlier_keys(tmp_path: Path) -> None:
    stop = threading.Event()
    with Broker(tmp_path / "old") as old, old.client("admin") as admin:
        admin.mset({f"training:before:{number}": "there" for number in range(1000)})

        def write() -> None:
            with old.client("worker") as worker:
                while not stop.is_set():
                    worker.incr("training:meanwhile")

        writer = threading.Thread(target=write)
        writer.start()
        try:
            admin.config_set("auto-aof-rewrite-percentage", 0)
            admin.bgrewriteaof()
            wait_until(
                lambda: not admin.info("persistence")["aof_rewrite_in_progress"],
                timeout_s=PATIENCE_S,
                description="the file is rewritten",
            )
            restored = tmp_path / "new" / "data" / "appendonlydir"
            shutil.copytree(old.data / "appendonlydir", restored)
        finally:
            stop.set()
            writer.join()
    with Broker(tmp_path / "new") as new, new.client("admin") as admin:
        assert len(admin.keys("training:before:*")) == 1000
        assert admin.exists("training:meanwhile")
