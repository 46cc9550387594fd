"""Peak memory of real-size models by trace, beside the estimates.

    OMP_NUM_THREADS=1 python -P -m benchmarks.memory_trace [--trace NAME ...] [--report FILE]

Traces the jobs whose names begin so (``--trace ''`` all of them, 15 minutes of processor time;
without the option none) on a CUDA device that is not there, and compares the estimate of each job
with its recorded trace. Needs g++ to trace.
"""

from benchmarks.memory_trace.shapes import traced_configs
from benchmarks.memory_trace.traces import HEADER, SHALLOW, SHALLOW_SUFFIX, record, rows
from benchmarks.results import parser_of, write_section

_COMMAND = "OMP_NUM_THREADS=1 python -P -m benchmarks.memory_trace --trace ''"


def main() -> None:
    """Trace, record and compare."""
    parser = parser_of(__doc__)
    parser.add_argument("--trace", nargs="*", default=[], metavar="NAME", help="names' beginnings")
    arguments = parser.parse_args()
    names = [*traced_configs(), *(f"{name}{SHALLOW_SUFFIX}" for name in SHALLOW)]
    if wanted := [name for name in names if name.startswith(tuple(arguments.trace))]:
        record(wanted)
    lines = list(rows())
    table = "\n".join([HEADER, f"|{' --- |' * (HEADER.count('|') - 1)}", *lines])
    print(table)
    if arguments.report:
        text = (
            f"## Memory traces\n\n`{_COMMAND}`, {len(lines)} jobs at real size. A trace has 0.7 "
            "GiB added for CUDA's context. The work is that of one batch and its update.\n\n"
            f"{table}\n\nGoal: every estimate within 5 % of its trace, and both inside the class.\n"
        )
        write_section(arguments.report, "memory traces", text)


if __name__ == "__main__":
    main()
