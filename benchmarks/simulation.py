"""A discrete-event simulation of a run on many workers.

Every event is the end of an attempt at one shard on one worker, or the return of a worker. The driver hands out shards
one at a time. Shards are written to a file system of limited bandwidth. A worker that fails loses its shard and returns
later. At the end of a stage, stragglers get a second copy (a twin), as in `pipeline.executors.scheduling`.
"""

from __future__ import annotations

import heapq
import random
import statistics
from collections import deque
from dataclasses import dataclass

from pipeline.executors.scheduling import SLOW, SLOW_SECONDS


@dataclass(frozen=True)
class Cluster:
    """The properties of a cluster. Times are in seconds."""

    workers: int
    dispatch: float  # seconds of the driver per shard
    bandwidth: float  # bytes per second of the file system, for all workers together
    mtbf: float = 30 * 86_400.0  # mean seconds between failures of one worker
    repair: float = 600.0  # seconds until a failed worker returns
    spread: float = 0.05  # standard deviation of the logarithm of a shard's seconds
    slow_share: float = 0.002  # share of attempts that are stragglers
    slow_times: float = 6.0  # factor by which stragglers are slower


@dataclass(frozen=True)
class Work:
    """Equal shards. Each takes `seconds` to compute and moves `bytes` to or from the file system."""

    shards: int
    seconds: float
    bytes: float


@dataclass
class Result:
    seconds: float = 0.0
    busy: float = 0.0  # worker seconds of computing, of attempts whose result was used
    again: int = 0  # shards that were lost with their worker and computed again
    twins: int = 0
    driver: float = 0.0  # seconds the driver was busy
    files: float = 0.0  # seconds the file system was busy
    workers: int = 1

    @property
    def efficiency(self) -> float:
        return self.busy / max(self.seconds * self.workers, 1e-9)


class _Stage:
    """The state of one stage during the simulation."""

    def __init__(self, work: Work, cluster: Cluster, seed: int) -> None:
        self.work, self.cluster, self.random = work, cluster, random.Random(seed)
        self.todo = deque(range(work.shards))
        self.free: deque[int] = deque(range(cluster.workers))
        self.events: list[tuple[float, int, int, float, bool]] = []  # end, worker, shard, beginning, whether it is lost
        self.running: dict[int, list[float]] = {}  # shard -> beginnings of its attempts
        self.done: set[int] = set()
        self.took: deque[float] = deque(maxlen=101)  # seconds of the last shards, with waits for the file system
        self.driver_free = self.files_free = self.now = 0.0
        self.result = Result(workers=cluster.workers)

    def run(self) -> Result:
        self.fill()
        while len(self.done) < self.work.shards:
            self.now, worker, shard, began, lost = heapq.heappop(self.events)
            if shard < 0:  # a worker has returned, or it is time to look for stragglers
                self.free.append(worker)
            else:
                self.end(worker, shard, began, lost)
            self.fill()
        self.result.seconds = self.now
        return self.result

    def end(self, worker: int, shard: int, began: float, lost: bool) -> None:
        self.running[shard].remove(began)
        if lost:
            heapq.heappush(self.events, (self.now + self.cluster.repair, worker, -1, 0.0, False))
            if shard not in self.done and not self.running[shard]:
                self.result.again += 1
                self.todo.append(shard)
            return
        self.free.append(worker)
        if shard not in self.done:
            self.done.add(shard)
            self.took.append(self.now - began)
            self.result.busy += self.work.seconds

    def fill(self) -> None:
        while self.todo and self.free:
            self.begin(self.todo.popleft())
        if not self.todo and self.free:
            self.send_twins()

    def send_twins(self) -> None:
        if len(self.took) < 3:
            return
        patience = max(SLOW * statistics.median(self.took), SLOW_SECONDS)
        late = [s for s, began in self.running.items() if len(began) == 1 and s not in self.done
                and self.now - began[0] > patience]  # fmt: skip
        for shard in late[: len(self.free)]:
            self.result.twins += 1
            self.begin(shard)
        wake = [began[0] + patience for s, began in self.running.items() if len(began) == 1 and s not in self.done]
        later = [at for at in wake if at > self.now]
        if later and self.free and (not self.events or min(later) < self.events[0][0]):
            heapq.heappush(self.events, (min(later) + 1e-6, self.free.popleft(), -1, 0.0, False))

    def begin(self, shard: int) -> None:
        c, worker = self.cluster, self.free.popleft()
        self.driver_free = max(self.now, self.driver_free) + c.dispatch
        self.result.driver += c.dispatch
        began = self.driver_free
        seconds = self.work.seconds * self.random.lognormvariate(0.0, c.spread)
        seconds *= c.slow_times if self.random.random() < c.slow_share else 1.0
        moving = self.work.bytes / c.bandwidth
        self.files_free = max(began + seconds, self.files_free) + moving if moving else self.files_free
        self.result.files += moving
        end = max(began + seconds, self.files_free) if moving else began + seconds
        fails = self.random.expovariate(1.0 / c.mtbf)
        lost = fails < end - began
        heapq.heappush(self.events, (began + fails if lost else end, worker, shard, began, lost))
        self.running.setdefault(shard, []).append(began)


def simulate(work: Work, cluster: Cluster, seed: int = 0) -> Result:
    return _Stage(work, cluster, seed).run()
