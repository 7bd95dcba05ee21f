"""Run the command line: ``python -m harness``."""

import signal
import sys


def main() -> None:
    """Run the command line; a Ctrl-C while it is still being loaded ends it as quietly as one later."""
    try:
        from harness.cli.app import main as run  # noqa: PLC0415 - loading takes a second, in which Ctrl-C may come
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    run()


if __name__ == "__main__":
    main()
