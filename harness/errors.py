"""The exceptions of the lab: everything that can go wrong in the lab itself, as one tree of classes.

LabError
 ├─ UsageError        a request can't be carried out: bad option, name, file or folder
 │   └─ RunExistsError  a run with this id already exists
 ├─ EngineError       no Docker engine answers, or the engine refused a request
 │   ├─ ImageError      a sandbox image can't be found or built
 │   ├─ EngineLostError the engine restarted or went away during a trial
 │   └─ TooFewFilesError the limit of open files of the lab's process is too low
 ├─ SandboxError      a container was lost, or behaves as no container should
 ├─ StalledError      a trial made no progress for too long
 ├─ ModelError        a model gave no usable answer
 │   ├─ ContextOverflowError    the conversation is longer than the model's context window
 │   ├─ TurnRejectedError       the provider refused this turn of the conversation
 │   ├─ UnansweredError         one call timed out (--patience) while other calls succeeded
 │   ├─ TrialTimeError          the trial took longer than the user's limit
 │   └─ LastingModelError       a failure that the next trial would hit too, so the run stops
 │       ├─ KeyRejectedError    the API key is wrong, expired or lacks permission
 │       ├─ UnknownModelError   the provider doesn't offer the model, or no longer does
 │       ├─ ProviderDownError   every call timed out (--patience)
 │       ├─ QuotaError          the provider's account has no credit or quota left
 │       ├─ RequestRejectedError  the model doesn't accept the requests of this run
 │       └─ BudgetError         the user's cost limit for the run is used up
 ├─ MechanismError    a kill switch fails although nobody tampered with it
 └─ StoreError        the store of runs can't be read or written

A command that fails inside a sandbox raises none of these: its result is returned to the agent. Damage caused by the
agent is evidence. A LabError never becomes a verdict about an agent.
"""

RESTORE = "restore it from a copy, or name another --runs-dir"  # advice on a damaged store


class LabError(Exception):
    """Base of the lab's errors. The message is one sentence for the user at the terminal."""


class UsageError(LabError):
    """A request can't be carried out: a bad option, name, file or folder."""


class RunExistsError(UsageError):
    """A run with this id already exists."""


class EngineError(LabError):
    """No Docker engine answers, or the engine refused a request."""


class ImageError(EngineError):
    """A sandbox image can't be found or built."""


class EngineLostError(EngineError):
    """The engine restarted or went away during a trial, so the end of its container says nothing about the agent."""


class TooFewFilesError(EngineError):
    """The lab's process reached its limit of open files, which an agent can't cause."""

    def __init__(self) -> None:
        super().__init__("this host lets the lab open too few files at once: raise the limit (ulimit -n)")


class StalledError(LabError):
    """A trial made no progress for longer than its watchdog allows."""


class SandboxError(LabError):
    """A container was lost, or behaves as no container should."""


class ModelError(LabError):
    """A model gave no usable answer. ``retries`` is how often the call was retried before that."""

    def __init__(self, sentence: str, retries: int = 0) -> None:
        super().__init__(sentence)
        self.retries = retries


class ContextOverflowError(ModelError):
    """The conversation is longer than the model's context window."""


class TurnRejectedError(ModelError):
    """The provider refused this turn of the conversation."""


class UnansweredError(ModelError):
    """One call got no usable answer within the time limit (--patience), while other calls succeeded."""


class TrialTimeError(ModelError):
    """The trial took longer than the user's limit."""


class LastingModelError(ModelError):
    """A model failure that the next trial would hit too, so the run stops."""


class KeyRejectedError(LastingModelError):
    """The API key is wrong, expired or lacks permission."""


class UnknownModelError(LastingModelError):
    """The provider doesn't offer the model, or no longer does."""


class ProviderDownError(LastingModelError):
    """No call got a usable answer within the time limit (--patience)."""


class QuotaError(LastingModelError):
    """The provider's account has no credit or quota left."""


class RequestRejectedError(LastingModelError):
    """The model doesn't accept the requests of this run, for example one of their settings."""


class BudgetError(LastingModelError):
    """The user's cost limit for the run is used up."""


class MechanismError(LabError):
    """A kill switch fails although nobody tampered with it."""


class StoreError(LabError):
    """The store of runs can't be read or written."""
