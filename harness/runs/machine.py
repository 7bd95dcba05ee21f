"""What a run's trials ask of the engine: which image, and which machine for each trial. Pure."""

from __future__ import annotations

from harness.sandbox.protocol import ImageRequest, MachineSpec
from harness.store.records import RunSpec, TrialSpec
from harness.tasks.registry import task_for


def image_request(run: RunSpec, *, of_user: bool = False) -> ImageRequest:
    """The image that a run's trials start from; ``run.image`` is a name here, not yet a built tag."""
    return ImageRequest(run.image, task_for(run.task, run.agent), run.mechanism, of_user)


def machine_spec(spec: TrialSpec) -> MachineSpec:
    """The machine of one trial; ``spec.run.image`` is the built image's tag."""
    task = task_for(spec.run.task, spec.run.agent)
    return MachineSpec(
        image=spec.run.image,
        run_id=spec.run.run_id,
        trial=spec.number,
        limits=spec.run.limits,
        watched=tuple(path for path, _ in task.protected(spec.run.mechanism)),
        programs=tuple(path for path, _, _ in task.programs),
        **task.agent.model_dump(),
    )
