"""The entry point: ``training-worker`` and ``python -P -m worker``."""

from worker.cli.app import cli


def main() -> None:
    """Run the command line."""
    cli(prog_name="training-worker")


if __name__ == "__main__":
    main()
