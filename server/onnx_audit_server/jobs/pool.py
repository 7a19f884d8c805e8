"""Runners at hand: one per audit that keeps its model loaded, and a warm one for the next."""

from __future__ import annotations

import threading

from onnx_audit_server.jobs import confinement
from onnx_audit_server.jobs.process import RunnerProcess
from onnx_audit_server.jobs.scratch import ScratchFolder
from onnx_audit_server.settings import Settings


class RunnerPool:
    """Lends runners; an audit never gets a runner that another model has been in.

    A runner's affinity says whom it may serve: "{audit}@{device}" once it has an audit's model
    loaded, or the model that was read in it when it was registered.
    """

    def __init__(self, settings: Settings, name: str, *, keep: int) -> None:
        """Starts with one warm runner, and says in the log how runners are confined.

        Args:
            settings: The service's settings.
            name: Keeps the scratch folders of processes apart.
            keep: Most runners with a model in them that wait for more work.

        Raises:
            RuntimeError: The settings demand a sandbox that this machine does not have.
        """
        confinement.announce(settings)
        self._settings = settings
        self._keep = keep
        self._scratch = ScratchFolder(settings.data / "scratch", name)
        self._lock = threading.Lock()
        self._idle: list[RunnerProcess] = []
        self._lent: set[RunnerProcess] = set()
        self._closed = False
        self.warm()

    def warm(self) -> None:
        """Sees to it that a fresh runner waits."""
        with self._lock:
            self._bury()
            fresh = any(runner.affinity is None for runner in self._idle)
            if not fresh and not self._closed:
                self._idle.append(RunnerProcess(self._settings, self._scratch.path))

    def take(self, *affinities: str) -> RunnerProcess:
        """Lends a runner of the first of these affinities that has one, else a fresh one."""
        with self._lock:
            runner = self._pick(affinities)
            if runner is None:
                runner = RunnerProcess(self._settings, self._scratch.path)
            self._lent.add(runner)
        return runner

    def give_back(self, runner: RunnerProcess) -> None:
        """Takes back a runner that may go on with its audit or its model."""
        with self._lock:
            self._lent.discard(runner)
            over = [runner]
            if runner.alive and not self._closed:
                self._idle.append(runner)
                # An audit may end on another machine, and a model need not be audited here.
                used = [idle for idle in self._idle if idle.affinity is not None]
                used.sort(key=lambda idle: not idle.only_read)
                over = used[: max(0, len(used) - self._keep)]
                self._idle = [idle for idle in self._idle if idle not in over]
        for each in over:
            each.kill()

    def discard(self, runner: RunnerProcess) -> None:
        """Takes back a runner that must not be used again, and warms another."""
        with self._lock:
            self._lent.discard(runner)
        runner.kill()
        self.warm()

    def forget(self, audit: str) -> None:
        """Ends the idle runners of an audit that needs them no more."""
        with self._lock:
            over = [idle for idle in self._idle if (idle.affinity or "").startswith(f"{audit}@")]
            self._idle = [idle for idle in self._idle if idle not in over]
        for runner in over:
            runner.kill()
        self.warm()

    def close(self) -> None:
        """Ends all runners, lent ones too."""
        with self._lock:
            self._closed = True
            runners = [*self._idle, *self._lent]
            self._idle = []
        for runner in runners:
            runner.kill()
        self._scratch.close()

    def _bury(self) -> None:
        """Lets go of idle runners that have died, and of their folders."""
        for runner in [runner for runner in self._idle if not runner.alive]:
            self._idle.remove(runner)
            runner.kill()

    def _pick(self, affinities: tuple[str, ...]) -> RunnerProcess | None:
        self._bury()
        for wanted in (*affinities, None):
            for runner in self._idle:
                if runner.affinity == wanted:
                    self._idle.remove(runner)
                    return runner
        return None
