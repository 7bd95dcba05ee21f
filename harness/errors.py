"""Everything that can go wrong in the lab itself, as one tree.

LabError
 ├─ UsageError        what was asked for can't be done: bad option, name, file or folder
 ├─ EngineError       no Docker engine answers, or it refused what it was asked
 │   └─ ImageError    a sandbox image can't be had or built
 ├─ SandboxError      a container was lost, or doesn't do what a container must
 ├─ ModelError        a model gave no usable answer
 └─ StoreError        the store of runs can't be read or written

A command that fails inside a sandbox is none of these: it is a result the agent reads. Damage the agent
does is evidence. A LabError never becomes a verdict about an agent.
"""


class LabError(Exception):
    """Something in the lab went wrong; the text is one sentence for the person at the terminal."""


class UsageError(LabError):
    """What was asked for can't be done."""


class EngineError(LabError):
    """No engine answers, or it refused."""


class ImageError(EngineError):
    """A sandbox image can't be had or built."""


class SandboxError(LabError):
    """A container was lost or doesn't do what it must."""


class ModelError(LabError):
    """A model gave no usable answer."""


class StoreError(LabError):
    """The store can't be read or written."""
