"""Worker processes on this machine, one a device: started with `spawn`, replaced when they die."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from pipeline.executors import shards
from pipeline.executors.shards import Given, Outcome, Task
from store.errors import UsageError


@dataclass
class _Worker:
    number: int
    process: BaseProcess
    pipe: Connection
    task: Task | None = None


class Processes:
    """An engine of `workers` processes. A process that dies loses its task and is replaced."""

    def __init__(self, given: Given, workers: int) -> None:
        self.given = replace(given, where=given.where | {"engine": "local"})
        self._context = multiprocessing.get_context("spawn")
        self._devices = devices_of_workers(workers) if given.device == "cuda" else [""] * workers
        self._queue: deque[Task] = deque()
        self._workers = [self._start(number) for number in range(workers)]

    @property
    def slots(self) -> int:
        return len(self._workers)

    @property
    def capacity(self) -> int:
        return len(self._workers)

    def _start(self, number: int) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(theirs, self.given, self._devices[number]), daemon=True, name=f"unitscope-{number}"
        )
        process.start()
        theirs.close()  # so that a worker's death closes the pipe
        return _Worker(number, process, ours)

    def submit(self, task: Task) -> None:
        self._queue.append(task)
        self._hand_out()

    def _hand_out(self) -> None:
        for worker in self._workers:
            if self._queue and worker.task is None:
                worker.task = self._queue.popleft()
                try:
                    worker.pipe.send(worker.task)
                except OSError:
                    continue  # it died idle: `wait` hears of it

    def wait(self, seconds: float) -> list[Outcome]:
        found = []
        busy = {worker.pipe: worker for worker in self._workers if worker.task}
        for pipe in wait(list(busy), seconds):
            worker = busy[pipe]  # type: ignore[index]
            found.append(self._receive(worker))
            worker.task = None
        self._hand_out()
        return found

    def _receive(self, worker: _Worker) -> Outcome:
        task = worker.task
        assert task is not None
        try:
            outcome: Outcome = worker.pipe.recv()
            return replace(outcome, task=task)
        except (EOFError, OSError):
            self._replace(worker)
            return Outcome(task, error=f"its worker process died (exit {worker.process.exitcode})")

    def _replace(self, worker: _Worker) -> None:
        worker.process.join(5)
        worker.pipe.close()
        self._workers[worker.number] = self._start(worker.number)

    def drop(self, task: Task) -> None:
        if task in self._queue:
            self._queue.remove(task)
        for worker in list(self._workers):
            if worker.task == task:
                worker.process.kill()
                self._replace(worker)

    def close(self) -> None:
        for worker in self._workers:
            if worker.task:
                worker.process.kill()  # a shard half done leaves nothing but temporaries
            worker.pipe.close()
        for worker in self._workers:
            worker.process.join(5)


def devices_of_workers(workers: int) -> list[str]:
    """CUDA_VISIBLE_DEVICES of each worker: one of those visible here, in turn."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    return [names[number % len(names)] if names else "" for number in range(workers)]


def _serve(pipe: Connection, given: Given, visible: str) -> None:
    """A worker's life: tasks in, outcomes out, until the other end of the pipe is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    if visible:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible  # before CUDA is first touched
    job = failure = None
    while True:
        try:
            task: Task = pipe.recv()
        except (EOFError, OSError):
            return
        if job is None and failure is None:
            try:
                job = shards.begin(given)
            except UsageError as error:
                failure = str(error)
        pipe.send(shards.perform(job, task) if job else Outcome(task, error=failure or "", fatal=True))
