"""Finds or installs a C compiler, which compiles the small static programs in sandbox images."""

import os
import platform
import shlex
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from harness.errors import EngineError, ImageError
from harness.process.environment import without_keys
from harness.process.identity import temporary_prefix
from harness.sandbox.docker.setup.local_engine import Say, apt_install, root_with_apt

PROGRAM = '#include <stdio.h>\nint main(void) { return puts("") < 0; }\n'
# A CPU's name in Python or Docker -> (its name for zig, its number in an ELF header).
MACHINES = {
    "x86_64": ("x86_64", 62),
    "amd64": ("x86_64", 62),
    "aarch64": ("aarch64", 183),
    "arm64": ("aarch64", 183),
}


def find_compiler(machine: str = "") -> list[str]:
    """Return the command of a C compiler on this host that builds static Linux programs for ``machine``.

    ``machine`` is a CPU architecture such as x86_64 or arm64; "" means this host's architecture. Raises ImageError if
    no such compiler is found.
    """
    name, number = MACHINES.get(machine or platform.machine(), (machine, 0))
    for command in _candidates(name):
        if _elf_machine(command) == number:
            return command
    way_out = f"run {sys.executable} -m pip install ziglang"
    raise ImageError(f"No C compiler here links static Linux programs for {name}: {way_out}.")


def ensure_compiler(say: Say) -> list[str]:
    """Install gcc if this host has no suitable C compiler, and return the compiler's command.

    The installation needs root and apt-get. Raises ImageError if there is still no suitable compiler.
    """
    try:
        return find_compiler()
    except ImageError:
        if not root_with_apt():
            raise
    with suppress(EngineError):  # the next search then raises the error with the way out
        apt_install(say, "gcc", "libc6-dev")
    return find_compiler()


def _candidates(machine: str) -> list[list[str]]:
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", f"{machine}-linux-musl"]
    own = [shlex.split(os.environ["CC"])] if os.environ.get("CC") else []
    return [*own, ["cc"], ["gcc"], ["clang"], *([zig] if find_spec("ziglang") else [])]


def _elf_machine(command: list[str]) -> int | None:
    """Compile a test program with the compiler ``command``, and return the program's CPU architecture.

    The architecture is the machine number in the program's ELF header. Returns None if the compilation fails.
    """
    with tempfile.TemporaryDirectory(prefix=temporary_prefix()) as folder:
        source, program = Path(folder, "a.c"), Path(folder, "a")
        source.write_text(PROGRAM)
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                [*command, "-static", "-o", str(program), str(source)],
                capture_output=True,
                env=without_keys(),
                timeout=300,
                check=False,
            )
            head = program.read_bytes()[:20]
            if head.startswith(b"\x7fELF"):
                return int.from_bytes(head[18:20], "little")
    return None
