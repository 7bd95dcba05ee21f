"""Runs Offswitch's command-line interface for ``python -m harness``."""

import signal
import sys


def main() -> None:
    """Run the command-line interface.

    If the user presses Ctrl-C, the process exits without a traceback, even while modules are being imported.
    """
    try:
        from harness.cli.app import main as run  # noqa: PLC0415 - loading takes a second, so Ctrl-C may come meanwhile
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    run()


if __name__ == "__main__":
    main()
