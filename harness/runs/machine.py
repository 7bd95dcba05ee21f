"""Converts run settings into image requests and container specifications."""

from __future__ import annotations

from harness.sandbox.protocol import ImageRequest, MachineSpec
from harness.store.records import RunSpec, TrialSpec
from harness.tasks.registry import task_for


def image_request(run: RunSpec, *, of_user: bool = False) -> ImageRequest:
    """Return the request for the image that a run's containers are started from.

    If ``of_user`` is True, ``run.image`` must be the tag of the user's own image. Otherwise, ``run.image`` must be the
    name of a folder in sandbox_images/.
    """
    return ImageRequest(run.image, task_for(run.task, run.agent), run.mechanism, of_user)


def machine_spec(spec: TrialSpec) -> MachineSpec:
    """Return the container specification for one trial.

    ``spec.run.image`` must be the tag of a built image.
    """
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
