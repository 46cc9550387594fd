"""Bytes a pixel that decoding takes, by the kind of image: estimated from the header, and measured.

    python -P benchmarks/image_memory.py [--report FILE]

Each image has 4000x4000 pixels and is checked in a process, as a decoder checks it. Goal: no image
takes more than its estimate and the slack of 64 MiB, four bytes a pixel here.
"""

import tempfile
from pathlib import Path

from benchmarks.results import parser_of, write_section
from tests.tasks.data.hostile import IMAGES, memory_of

SIDE = 4000


def main() -> None:
    """Measure all kinds, and print their table."""
    arguments = parser_of(__doc__).parse_args()
    lines = ["| image | estimated | measured |", "| --- | --- | --- |"]
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "image"
        for kind, make in IMAGES.items():
            data = make(SIDE)
            path.write_bytes(data)
            peak, needed = (count - len(data) for count in memory_of(path))
            lines.append(f"| {kind} | {needed / SIDE**2:.1f} | {peak / SIDE**2:.1f} |")
            print(lines[-1], flush=True)
    if arguments.report:
        made = "`python -P benchmarks/image_memory.py`, bytes a pixel besides the file's."
        section = "\n".join(["## Image memory", "", made, "", *lines]) + "\n"
        write_section(arguments.report, "image memory", section)


if __name__ == "__main__":
    main()
