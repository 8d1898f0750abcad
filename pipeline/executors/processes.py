"""Worker processes on this machine, one per device. They are started with `spawn` and replaced when they die."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from pipeline.executors.worker import Outcome, Task, WorkerSpec, begin, perform
from pipeline.job import Job
from store.errors import UsageError

MOST_THREADS = 256  # of a worker; never reached, as the engine sends a worker no more tasks than run at once


@dataclass
class _Worker:
    number: int
    process: BaseProcess
    pipe: Connection
    tasks: list[Task] = field(default_factory=list)


class Processes:
    """An engine of worker processes.

    There are `workers` processes, and each runs `at_once(stage)` shards of a stage at the same time. The tasks of a
    process that dies are reported as failed, and the process is replaced.
    """

    def __init__(self, given: WorkerSpec, workers: int, at_once: Callable[[str], int] = lambda stage: 1) -> None:
        self.given = given
        self._at_once = at_once
        self._context = multiprocessing.get_context("spawn")
        self._devices = devices_of_workers(workers) if given.device == "cuda" else [""] * workers
        self._queue: deque[Task] = deque()
        self._workers = [self._start(number) for number in range(workers)]

    def slots(self, stage: str) -> int:
        return len(self._workers) * self._at_once(stage)

    def capacity(self, stage: str) -> int:
        return self.slots(stage)

    def _start(self, number: int) -> _Worker:
        parent_end, worker_end = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(worker_end, self.given, self._devices[number]), daemon=True, name=f"unitscope-{number}"
        )
        process.start()
        worker_end.close()  # so that a worker's death closes the pipe
        return _Worker(number, process, parent_end)

    def submit(self, task: Task) -> None:
        self._queue.append(task)
        self._hand_out()

    def _hand_out(self) -> None:
        """Send each queued task to the worker with the fewest tasks, until all workers are full."""
        while self._queue:
            worker = min(self._workers, key=lambda w: len(w.tasks))
            if len(worker.tasks) >= self._at_once(self._queue[0].stage):
                return
            task = self._queue.popleft()
            worker.tasks.append(task)
            with contextlib.suppress(OSError):  # the worker died while it was idle: `wait` will notice
                worker.pipe.send(task)

    def wait(self, seconds: float) -> list[Outcome]:
        outcomes = []
        busy = {worker.pipe: worker for worker in self._workers if worker.tasks}
        for pipe in wait(list(busy), seconds):
            outcomes += self._receive(busy[pipe])  # type: ignore[index]
        self._hand_out()
        return outcomes

    def _receive(self, worker: _Worker) -> list[Outcome]:
        try:
            outcome: Outcome = worker.pipe.recv()
        except (EOFError, OSError):
            self._replace(worker)
            died = f"its worker process died (exit {worker.process.exitcode})"
            return [Outcome(task, error=died) for task in worker.tasks]
        worker.tasks.remove(outcome.task)
        return [outcome]

    def _replace(self, worker: _Worker) -> None:
        worker.process.join(5)
        worker.pipe.close()
        self._workers[worker.number] = self._start(worker.number)

    def drop(self, task: Task) -> None:
        if task in self._queue:
            self._queue.remove(task)
        for worker in list(self._workers):
            if task in worker.tasks:
                worker.process.kill()
                self._replace(worker)
                self._queue.extend(other for other in worker.tasks if other != task)

    def close(self) -> None:
        for worker in self._workers:
            if worker.tasks:
                worker.process.kill()  # an unfinished shard leaves only temporary files
            worker.pipe.close()
        for worker in self._workers:
            worker.process.join(5)


def devices_of_workers(workers: int) -> list[str]:
    """Return CUDA_VISIBLE_DEVICES of each worker: the devices visible here, in turn; "" if there are none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    return [names[number % len(names)] if names else "" for number in range(workers)]


def _serve(pipe: Connection, given: WorkerSpec, visible: str) -> None:
    """Run tasks from the pipe and send their outcomes back, until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    if visible:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible  # before CUDA is first touched
    job: Job | str | None = None  # a string is the error why there is no job
    sending = threading.Lock()

    def answer(job: Job | str, task: Task) -> None:
        done = Outcome(task, error=job, fatal=True) if isinstance(job, str) else perform(job, task)
        with sending:
            pipe.send(done)

    with ThreadPoolExecutor(MOST_THREADS) as pool:
        while True:
            try:
                task: Task = pipe.recv()
            except (EOFError, OSError):
                return
            if job is None:
                job = _begin(given)
            pool.submit(answer, job, task)


def _begin(given: WorkerSpec) -> Job | str:
    """Return the worker's job, or the error why it cannot be made."""
    try:
        return begin(given)
    except UsageError as error:
        return str(error)
