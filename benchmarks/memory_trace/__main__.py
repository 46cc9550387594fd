"""Peak memory of real-size models by trace, beside the estimates.

    OMP_NUM_THREADS=1 python -P -m benchmarks.memory_trace [--trace NAME ...] [--report FILE]
        [--scripts EXAMPLES]

Traces the jobs whose names begin so (``--trace ''`` all of them, 15 minutes of processor time;
without the option none) on a CUDA device that is not there, and compares the estimate of each job
with its recorded trace. Needs g++ to trace. EXAMPLES is the folder of that name of diffusers'
repository: its LoRA scripts are traced too, with an interpreter that has their dependencies.
"""

from collections.abc import Iterable
from pathlib import Path

from benchmarks.memory_trace.shapes import traced_configs
from benchmarks.memory_trace.traces import (
    HEADER,
    SHALLOW,
    SHALLOW_SUFFIX,
    WORK_HEADER,
    record,
    record_scripts,
    rows,
    work_rows,
)
from benchmarks.results import parser_of, write_section

_COMMAND = "OMP_NUM_THREADS=1 python -P -m benchmarks.memory_trace --trace ''"
_WORK = f"""`{_COMMAND} --scripts EXAMPLES`, counts of one batch and its update at real size in
bfloat16, a LoRA of rank 16 on the same layers on all sides. `before` is commit 2257483. diffusers'
scripts (58eb52c) are given the encodings of images and captions, which they would compute again in
each step; they clip gradients, and keep the LoRA in bfloat16, where ours is in float32. A kernel on
a list of tensors counts once. Ours saves at the end of the step, whose check of the weights took
two kernels a weight before. Nothing is compiled."""


def main() -> None:
    """Trace, record and compare."""
    parser = parser_of(__doc__)
    parser.add_argument("--trace", nargs="*", default=[], metavar="NAME", help="names' beginnings")
    parser.add_argument("--scripts", type=Path, metavar="EXAMPLES", help="trace diffusers' scripts")
    arguments = parser.parse_args()
    names = [*traced_configs(), *(f"{name}{SHALLOW_SUFFIX}" for name in SHALLOW)]
    if wanted := [name for name in names if name.startswith(tuple(arguments.trace))]:
        record(wanted)
    if arguments.scripts:
        record_scripts(arguments.scripts)
    lines = list(rows())
    table, work = _table(HEADER, lines), _table(WORK_HEADER, work_rows())
    print(table, work, sep="\n\n")
    if arguments.report:
        text = (
            f"## Memory traces\n\n`{_COMMAND}`, {len(lines)} jobs at real size. A trace has 0.7 "
            "GiB added for CUDA's context. The work is that of one batch and its update.\n\n"
            f"{table}\n\nGoal: every estimate within 5 % of its trace, and both inside the class.\n"
        )
        write_section(arguments.report, "memory traces", text)
        write_section(
            arguments.report, "work of a step", f"## Work of a step\n\n{_WORK}\n\n{work}\n"
        )


def _table(header: str, lines: Iterable[str]) -> str:
    return "\n".join([header, f"|{' --- |' * (header.count('|') - 1)}", *lines])


if __name__ == "__main__":
    main()
