"""Sets up this machine for trials: ``python -m harness.sandbox.docker.setup``."""

import sys

from harness.errors import LabError
from harness.sandbox.docker.connect import connect
from harness.sandbox.docker.images.base_image import ensure_base
from harness.sandbox.docker.images.compiler import ensure_compiler
from harness.sandbox.docker.setup.local_engine import Say, ensure_engine


def ensure_all(say: Say) -> None:
    """Provide an engine, the base image and a compiler; fast where all exist already."""
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
    """Set up, or exit with the error in one sentence."""
    try:
        ensure_all(say)
    except LabError as error:
        sys.exit(f"lab: {error}")


if __name__ == "__main__":
    main()
