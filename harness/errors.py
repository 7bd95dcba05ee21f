"""The exceptions of the lab, as one tree of classes, with what each of them means.

LabError
 ├─ UsageError        a request can't be carried out: bad option, name, file or folder
 │   └─ RunExistsError  a run with this id already exists
 ├─ EngineError       no Docker engine answers, or the engine refused a request
 │   ├─ ImageError      a sandbox image can't be found or built
 │   ├─ EngineLostError the engine restarted or went away during a trial
 │   └─ TooFewFilesError the lab's process may not open as many files as it needs
 ├─ SandboxError      a container was lost, or a program of the lab that runs or watches it failed
 ├─ StalledError      a trial made no progress for too long
 ├─ ModelError        a model gave no usable answer
 │   ├─ ContextOverflowError    the conversation is longer than the model's context window
 │   ├─ TurnRejectedError       the provider rejected one request, although it had accepted an earlier one
 │   ├─ UnansweredError         one call timed out (see --patience), while other calls succeeded
 │   ├─ TrialTimeError          the trial took longer than the user's limit
 │   └─ LastingModelError       a failure that the next trial would meet as well, so the run stops
 │       ├─ KeyRejectedError    the API key is wrong, expired or lacks permission
 │       ├─ UnknownModelError   the provider doesn't offer the model, or no longer does
 │       ├─ ProviderDownError   every call timed out (see --patience)
 │       ├─ QuotaError          the provider's account has no credit or quota left
 │       ├─ RequestRejectedError  the model doesn't accept the requests of this run
 │       └─ BudgetError         the user's cost limit for the run is used up
 ├─ MechanismError    a kill switch fails although nobody tampered with it
 └─ StoreError        the store of runs can't be read or written

A command of the agent that fails inside its container raises none of these, because its result is returned to the
agent. Damage that the agent causes is recorded as evidence. A LabError never leads to a verdict about the agent.
"""

RESTORE = "restore it from a copy, or name another --runs-dir"  # advice on a damaged store


class LabError(Exception):
    """The base class of the lab's errors. The message of each is one sentence for the user at the terminal."""


class UsageError(LabError):
    """A request can't be carried out, for example because an option, name, file or folder is wrong."""


class RunExistsError(UsageError):
    """A run with this id already exists."""


class EngineError(LabError):
    """No Docker engine answers, or the engine refused a request."""


class ImageError(EngineError):
    """A sandbox image can't be found or built."""


class EngineLostError(EngineError):
    """The Docker engine restarted or went away during a trial.

    The trial says nothing about the agent then, because the engine may have stopped the container.
    """


class TooFewFilesError(EngineError):
    """The lab's process reached its limit on open files, which an agent can't cause."""

    def __init__(self) -> None:
        super().__init__("this host lets the lab open too few files at once: raise the limit (ulimit -n)")


class StalledError(LabError):
    """A trial made no progress for longer than the lab's watchdog allows."""


class SandboxError(LabError):
    """A container was lost, or a program of the lab that runs or watches the container failed."""


class ModelError(LabError):
    """A model gave no usable answer. ``retries`` is how often the call was repeated before the lab gave up."""

    def __init__(self, sentence: str, retries: int = 0) -> None:
        super().__init__(sentence)
        self.retries = retries


class ContextOverflowError(ModelError):
    """The conversation is longer than the model's context window."""


class TurnRejectedError(ModelError):
    """The provider rejected one request in a conversation, although it had accepted an earlier request."""


class UnansweredError(ModelError):
    """One call to a model got no usable answer within the time set by --patience, while other calls succeeded."""


class TrialTimeError(ModelError):
    """The trial took longer than the time limit that the user set."""


class LastingModelError(ModelError):
    """A model failure that would also occur in the next trial, so the run stops."""


class KeyRejectedError(LastingModelError):
    """The provider rejected the API key, because it is wrong or expired or lacks permission."""


class UnknownModelError(LastingModelError):
    """The provider doesn't offer the model, or has stopped offering it."""


class ProviderDownError(LastingModelError):
    """No call to the provider got a usable answer within the time set by --patience."""


class QuotaError(LastingModelError):
    """The provider's account has no credit or quota left."""


class RequestRejectedError(LastingModelError):
    """The model doesn't accept the requests of this run, for example because of a setting in them."""


class BudgetError(LastingModelError):
    """The user's cost limit for the run is used up."""


class MechanismError(LabError):
    """A kill switch fails although nobody tampered with it."""


class StoreError(LabError):
    """The store of runs can't be read or written."""
