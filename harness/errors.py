"""Everything that can go wrong in the lab itself, as one tree.

LabError
 ├─ UsageError        what was asked for can't be done: bad option, name, file or folder
 │   └─ RunExistsError  there is a run of that id already
 ├─ EngineError       no Docker engine answers, or it refused what it was asked
 │   ├─ ImageError      a sandbox image can't be had or built
 │   └─ EngineLostError the engine was restarted, or went away, while a trial ran
 ├─ SandboxError      a container was lost, or doesn't do what a container must
 ├─ StalledError      a trial made no progress for longer than anything may take
 ├─ ModelError        a model gave no usable answer
 │   ├─ ContextOverflowError    the conversation is longer than the model takes
 │   ├─ TurnRejectedError       the provider refused to read this turn of the conversation
 │   ├─ UnansweredError         one call got no usable answer for as long as patience lasted, others did
 │   ├─ TrialTimeError          the trial took longer than the user allows
 │   └─ LastingModelError       one that the next trial would meet as well, so the run stops
 │       ├─ KeyRejectedError    the key is wrong, expired or not allowed to do this
 │       ├─ UnknownModelError   the provider has no such model, or has it no longer
 │       ├─ ProviderDownError   nobody got a usable answer for as long as patience lasted
 │       ├─ QuotaError          what the account may spend is spent
 │       ├─ RequestRejectedError  what the run sends can't be sent to this model
 │       └─ BudgetError         what the user allowed the run is spent
 ├─ MechanismError    a kill switch doesn't work though nobody has touched it
 └─ StoreError        the store of runs can't be read or written

A command that fails inside a sandbox is none of these: it is a result the agent reads. Damage the agent
does is evidence. A LabError never becomes a verdict about an agent.
"""

RESTORE = "restore it from a copy, or name another --runs-dir"  # what to do about a store that is damaged


class LabError(Exception):
    """Something in the lab went wrong; the text is one sentence for the person at the terminal."""


class UsageError(LabError):
    """What was asked for can't be done."""


class RunExistsError(UsageError):
    """There is a run of that id already."""


class EngineError(LabError):
    """No engine answers, or it refused."""


class ImageError(EngineError):
    """A sandbox image can't be had or built."""


class EngineLostError(EngineError):
    """The engine was restarted, or went away, while a trial ran: what became of its container says nothing."""


class TooFewFilesError(EngineError):
    """The lab's own process may open no further file: nothing that an agent could bring about."""

    def __init__(self) -> None:
        super().__init__("this host lets the lab open too few files at once: raise the limit (ulimit -n)")


class StalledError(LabError):
    """A trial made no progress for longer than anything may take."""


class SandboxError(LabError):
    """A container was lost or doesn't do what it must."""


class ModelError(LabError):
    """A model gave no usable answer. ``retries`` is how often the call was tried again before this was said."""

    def __init__(self, sentence: str, retries: int = 0) -> None:
        super().__init__(sentence)
        self.retries = retries


class ContextOverflowError(ModelError):
    """The conversation is longer than the model takes."""


class TurnRejectedError(ModelError):
    """The provider refused to read this turn of the conversation."""


class UnansweredError(ModelError):
    """One call got no usable answer for as long as patience lasted; others did."""


class TrialTimeError(ModelError):
    """The trial took longer than the user allows."""


class LastingModelError(ModelError):
    """One that won't heal by itself: the next trial would meet it as well."""


class KeyRejectedError(LastingModelError):
    """The key is wrong, expired or not allowed to do this."""


class UnknownModelError(LastingModelError):
    """The provider has no such model, or has it no longer."""


class ProviderDownError(LastingModelError):
    """Nobody got a usable answer for as long as patience lasted."""


class QuotaError(LastingModelError):
    """What the account may spend is spent."""


class RequestRejectedError(LastingModelError):
    """What the run sends can't be sent to this model."""


class BudgetError(LastingModelError):
    """What the user allowed the run is spent."""


class MechanismError(LabError):
    """A kill switch doesn't work though nobody has touched it."""


class StoreError(LabError):
    """The store can't be read or written."""
