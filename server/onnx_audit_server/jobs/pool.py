"""Runners at hand: one per audit that keeps its model loaded, and a warm one for the next."""

from __future__ import annotations

import shutil
import threading

from onnx_audit_server.jobs.process import RunnerProcess
from onnx_audit_server.settings import Settings


class RunnerPool:
    """Lends runners; an audit never gets a runner that another model has been in.

    A runner's affinity says whom it may serve: the audit whose model it has loaded, or the model
    that was read in it when it was registered.
    """

    def __init__(self, settings: Settings, name: str, *, keep: int) -> None:
        """Starts with one warm runner.

        Args:
            settings: The service's settings.
            name: Keeps the scratch folders of processes apart.
            keep: Most runners with a model in them that wait for more work.
        """
        self._settings = settings
        self._keep = keep
        self._scratch = settings.data / "scratch" / name
        # What a killed predecessor of this process left behind.
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._lock = threading.Lock()
        self._idle: list[RunnerProcess] = []
        self._lent: set[RunnerProcess] = set()
        self._closed = False
        self.warm()

    def warm(self) -> None:
        """Sees to it that a fresh runner waits."""
        with self._lock:
            fresh = any(runner.affinity is None and runner.alive for runner in self._idle)
            if not fresh and not self._closed:
                self._idle.append(RunnerProcess(self._settings, self._scratch))

    def take(self, *affinities: str) -> RunnerProcess:
        """Lends a runner of the first of these affinities that has one, else a fresh one."""
        with self._lock:
            runner = self._pick(affinities)
            if runner is None:
                runner = RunnerProcess(self._settings, self._scratch)
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

    def forget(self, affinity: str) -> None:
        """Ends the idle runners of an audit that needs them no more."""
        with self._lock:
            over = [runner for runner in self._idle if runner.affinity == affinity]
            self._idle = [runner for runner in self._idle if runner.affinity != affinity]
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

    def _pick(self, affinities: tuple[str, ...]) -> RunnerProcess | None:
        self._idle = [runner for runner in self._idle if runner.alive]
        for wanted in (*affinities, None):
            for runner in self._idle:
                if runner.affinity == wanted:
                    self._idle.remove(runner)
                    return runner
        return None
