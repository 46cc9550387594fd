"""Process that decodes the files of untrusted datasets: images, archives and parquet files.

``decoder_pool`` starts it with the descriptor of a socket, over which it answers one request at a
time; each message is a line of JSON. Whatever a file makes a library do, allocate or crash ends
with this process: it has no secrets, may be killed at any time, and cannot allocate more memory
than it has reserved.
"""

import json
import re
import resource
import signal
import sys
import warnings
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from tasks.buckets import Size
from tasks.data.decoding.archive_members import DISK_ERRNOS
from tasks.data.decoding.image_check import MaskFile, UnusableFileError, check_image, make_thumbnail
from tasks.data.decoding.image_file import OtherFormatError, UnreadableImageError
from tasks.data.decoding.parquet import RowWriter, UnreadableParquetError, read_rows
from tasks.process.parent_death import end_with_parent

# Memory that needs no reservation, so that small images cost no round trip.
_FREE_BYTES = 16 * 2**20
# What estimates do not count: strips of pixels, tables of the libraries, fragmentation.
_SLACK_BYTES = 64 * 2**20
# The names of a million members, and zipfile's object for each.
_UNPACKING_BYTES = 2**30


class Decoder:
    """Answers the requests of a parent process.

    Args:
        requests: What the parent sends.
        answers: What the parent receives.
    """

    def __init__(self, requests: BinaryIO, answers: BinaryIO) -> None:
        self._requests, self._answers = requests, answers
        self._own_bytes = 0
        self._reserved = 0

    def run(self) -> None:
        """Answer requests until the parent closes the socket."""
        while line := self._requests.readline():
            self._reserved = 0
            self._limit_memory()
            self._send(self._answer(json.loads(line)))

    def reserve(self, count: int) -> None:
        """Wait until the parent has reserved another number of bytes for the request."""
        if self._reserved + count > _FREE_BYTES:
            self._send({"reserve": count})
            self._requests.readline()
        self._reserved += count
        self._limit_memory()

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"result": self._decode(**request)}
        except OtherFormatError as error:
            return {"problem": error.format.refusal, "remedy": error.format.remedy}
        except (UnreadableImageError, UnusableFileError, UnreadableParquetError) as error:
            return {"problem": str(error)}
        except MemoryError:
            return {"problem": "takes more memory to read than its header declares"}
        # Libraries raise anything for bytes that they do not expect.
        except Exception as error:  # noqa: BLE001
            if isinstance(error, OSError) and error.errno in DISK_ERRNOS:
                return {"disk_error": [error.errno, error.strerror]}
            return {"problem": f"cannot be read: {str(error) or type(error).__name__}"}

    def _decode(self, kind: str, path: str, **arguments: Any) -> Any:
        file = Path(path)
        match kind:
            case "image":
                mask = arguments["mask"]
                return asdict(check_image(file, mask and _mask_file(**mask), self.reserve))
            case "thumbnail":
                thumbnail, side = Path(arguments["thumbnail"]), arguments["side"]
                return make_thumbnail(file, thumbnail, side, self.reserve)
            case "archive":
                # Here: few datasets have one, and every decoder would take longer to start.
                from tasks.data.decoding.archives import unpack

                self.reserve(_UNPACKING_BYTES)
                folder, max_bytes = Path(arguments["folder"]), arguments["max_bytes"]
                return asdict(unpack(file, folder, max_bytes=max_bytes))
            case "parquet":
                folder = Path(arguments.pop("folder"))
                return read_rows(
                    file, RowWriter(folder, **arguments), self.reserve, self._send_items
                )
        raise ValueError(f"unknown kind of file: {kind}")

    def _send_items(self, items: list[Any]) -> None:
        self._send({"items": items})

    def _send(self, document: dict[str, Any]) -> None:
        self._answers.write(json.dumps(document, default=str).encode() + b"\n")
        self._answers.flush()

    def _limit_memory(self) -> None:
        """Let the kernel refuse memory beyond what is reserved; Linux only."""
        if sys.platform != "linux":
            return
        if not self._own_bytes:
            status = Path("/proc/self/status").read_text("utf-8")
            self._own_bytes = 1024 * int(re.findall(r"VmData:\s+(\d+)", status)[0])
        limit = self._own_bytes + _SLACK_BYTES + max(_FREE_BYTES, self._reserved)
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _mask_file(path: str, sizes: list[list[int]], center_crop: bool) -> MaskFile:
    return MaskFile(Path(path), tuple(Size(*size) for size in sizes), center_crop)


def main() -> None:
    """Run a decoder on the socket that the command line names."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Of damaged metadata, which no finding needs.
    warnings.simplefilter("ignore")
    # A core dump would write gigabytes of a tenant's data to the disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        end_with_parent()
        with suppress(OSError):
            # The kernel ends this process first when memory runs out.
            Path("/proc/self/oom_score_adj").write_text("1000", "utf-8")
    descriptor = int(sys.argv[1])
    with open(descriptor, "rb") as requests, open(descriptor, "wb", closefd=False) as answers:
        Decoder(requests, answers).run()


if __name__ == "__main__":
    main()
