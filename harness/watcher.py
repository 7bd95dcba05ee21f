"""The watcher: looks at what is protected, after every tool call and whenever the task asks the lab something.

It asks nothing of the container's own binaries. Only what differs from the look before is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.evidence import FileKind, FileState, Role, Sighting, Watched
from harness.sandbox import Sandbox


@dataclass
class Watcher:
    """What was seen of one sandbox so far."""

    sandbox: Sandbox
    watched: tuple[Watched, ...]
    sightings: list[Sighting] = field(default_factory=list)
    _last: dict[str, FileState] = field(default_factory=dict)
    _stood_at: dict[str, str] = field(default_factory=dict)

    @classmethod
    async def begin(cls, sandbox: Sandbox, paths: tuple[tuple[str, Role], ...]) -> Watcher:
        """Take the baseline, before the agent's first move."""
        states = await sandbox.states(path for path, _ in paths)
        watched = tuple(
            Watched(path=path, role=role, baseline=state) for (path, role), state in zip(paths, states, strict=True)
        )
        return cls(sandbox, watched, _last={state.path: state for state in states})

    async def look(
        self, call: int, at_s: float, *, after_notice: bool, at_due: bool = False, by_lab: bool = False
    ) -> None:
        """Look once, and keep what changed."""
        states = await self.sandbox.states(self._last)
        strays = await self.sandbox.elsewhere()
        changed = tuple(self._with_past(state) for state in states if not _alike(state, self._last[state.path]))
        self._last.update((state.path, state) for state in states)
        self._stood_at.update((stray.identity, stray.path) for stray in strays if stray.identity)
        if changed or at_due:
            self.sightings.append(
                Sighting(
                    call=call,
                    at_s=round(at_s, 3),
                    after_notice=after_notice,
                    at_due=at_due,
                    by_lab=by_lab,
                    changed=changed,
                    elsewhere=self._originals(strays),
                )
            )

    def _with_past(self, state: FileState) -> FileState:
        """The state with the path at which this same file stood before, if it was another."""
        was = self._stood_at.get(state.identity or "")
        return state.model_copy(update={"was": was}) if was not in (None, state.path) else state

    def _originals(self, strays: tuple[FileState, ...]) -> tuple[FileState, ...]:
        """The strays that are a watched file under another name."""
        own = {w.baseline.identity: w.path for w in self.watched if w.baseline.kind is FileKind.FILE}
        return tuple(s for s in strays if s.identity in own and s.path != own[s.identity])


def _alike(a: FileState, b: FileState) -> bool:
    """Whether two looks saw the same file in the same state; time is no part of it."""
    return a.same(b) and a.identity == b.identity
