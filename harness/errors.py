"""The lab's exception classes and their meanings.

LabError
 ├─ UsageError        a user's request can't be carried out
 │   └─ RunExistsError  a run with this id already exists
 ├─ EngineError       the Docker engine doesn't respond, or it refused a request
 │   ├─ ImageError      a sandbox image can't be found or built
 │   ├─ EngineLostError the engine restarted or became unreachable during a trial
 │   └─ TooFewFilesError the lab's process or the host can't open any more files
 ├─ SandboxError      a container was lost, or a lab program that runs or monitors a container failed
 ├─ StalledError      a trial made no progress for too long
 ├─ ModelError        a model returned no usable response
 │   ├─ ContextOverflowError    the conversation is longer than the model's context window
 │   ├─ TurnRejectedError       the provider rejected a request after accepting earlier ones in the conversation
 │   ├─ UnansweredError         one call timed out (see --patience), while other calls succeeded
 │   ├─ TrialTimeError          the trial exceeded the user's time limit
 │   └─ LastingModelError       a failure that would also occur in the next trial; it stops the run
 │       ├─ KeyRejectedError    the API key is wrong, is expired or lacks permission
 │       ├─ UnknownModelError   the provider doesn't offer the model or no longer offers it
 │       ├─ ProviderDownError   every call timed out (see --patience)
 │       ├─ QuotaError          the provider's account has no credit or quota left
 │       ├─ RequestRejectedError  the provider rejects this run's requests
 │       └─ BudgetError         the user's cost limit for the run is used up
 ├─ MechanismError    a kill switch failed although nobody tampered with it
 ├─ JudgeError        a task's judge failed
 └─ StoreError        the store of runs can't be read or written

If an agent's command fails inside the container, the lab raises no exception and returns the command's result to the
agent. Damage that the agent causes is recorded as evidence. A LabError never leads to a verdict about the agent.
"""

RESTORE = "restore it from a copy, or name another --runs-dir"  # advice on a damaged store


class LabError(Exception):
    """Base class of the lab's exceptions. Each exception's message is one sentence for the user."""


class UsageError(LabError):
    """A user's request can't be carried out, for example because an option, name, file or folder is invalid."""


class RunExistsError(UsageError):
    """A run with this id already exists."""


class EngineError(LabError):
    """The Docker engine doesn't respond, or it refused a request."""


class ImageError(EngineError):
    """A sandbox image can't be found or built."""


class EngineLostError(EngineError):
    """The Docker engine restarted or became unreachable during a trial.

    The engine may have stopped the container, so the trial allows no conclusion about the agent.
    """


class TooFewFilesError(EngineError):
    """The lab's process or the host can't open any more files. An agent can't cause this error."""

    def __init__(self) -> None:
        super().__init__("this host lets the lab open too few files at once: raise the limit (ulimit -n)")


class StalledError(LabError):
    """A trial made no progress for longer than the lab's watchdog allows."""


class SandboxError(LabError):
    """A container was lost, or a lab program that runs or monitors a container failed."""


class ModelError(LabError):
    """A model returned no usable response. ``retries`` is the number of times that the call was retried."""

    def __init__(self, sentence: str, retries: int = 0) -> None:
        super().__init__(sentence)
        self.retries = retries


class ContextOverflowError(ModelError):
    """The conversation is longer than the model's context window."""


class TurnRejectedError(ModelError):
    """The provider rejected a request after accepting earlier requests in the same conversation."""


class UnansweredError(ModelError):
    """One call to a model got no usable response within the --patience time limit, while other calls succeeded."""


class TrialTimeError(ModelError):
    """The trial exceeded the time limit that the user set."""


class LastingModelError(ModelError):
    """A model failure that would also occur in the next trial. It stops the run."""


class KeyRejectedError(LastingModelError):
    """The provider rejected the API key because the key is wrong, is expired or lacks permission."""


class UnknownModelError(LastingModelError):
    """The provider doesn't offer the model or no longer offers it."""


class ProviderDownError(LastingModelError):
    """No call to the provider got a usable response within the --patience time limit."""


class QuotaError(LastingModelError):
    """The provider's account has no credit or quota left."""


class RequestRejectedError(LastingModelError):
    """The provider rejects this run's requests, for example because the model doesn't support a setting."""


class BudgetError(LastingModelError):
    """The user's cost limit for the run is used up."""


class MechanismError(LabError):
    """A kill switch failed although nobody tampered with it."""


class JudgeError(LabError):
    """A task's judge failed, or it didn't return a valid verdict."""


class StoreError(LabError):
    """The store of runs can't be read or written."""
