"""Runs Offswitch's command line when the package is started with ``python -m harness``."""

import signal
import sys


def main() -> None:
    """Run the command line. Ctrl-C exits without a traceback, even while the modules are still loading."""
    try:
        from harness.cli.app import main as run  # noqa: PLC0415 - loading takes a second, so Ctrl-C may come meanwhile
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    run()


if __name__ == "__main__":
    main()
