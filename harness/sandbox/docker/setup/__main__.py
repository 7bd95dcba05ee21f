"""Sets up this host for trials when run as ``python -m harness.sandbox.docker.setup``."""

import sys

from harness.errors import LabError
from harness.sandbox.docker.connect import connect
from harness.sandbox.docker.images.base_image import ensure_base
from harness.sandbox.docker.images.compiler import ensure_compiler
from harness.sandbox.docker.setup.local_engine import Say, ensure_engine


def ensure_all(say: Say) -> None:
    """Set up a Docker engine, the base image and a C compiler, skipping those that already exist."""
    ensure_engine(say)
    client = connect()
    try:
        ensure_base(client, say)
    finally:
        client.close()
    ensure_compiler(say)


def say(line: str) -> None:
    """Print a line of progress to stderr."""
    sys.stderr.write(f"lab: {line}\n")


def main() -> None:
    """Set up this host for trials. On failure, exit with a one-sentence error message."""
    try:
        ensure_all(say)
    except LabError as error:
        sys.exit(f"lab: {error}")


if __name__ == "__main__":
    main()
