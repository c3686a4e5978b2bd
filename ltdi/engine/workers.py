"""Who makes the shards: this process, processes of this machine, or Ray's workers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltdi.errors import InputError, LtdiError, unknown
from ltdi.optional import optional

Job = Callable[[str, int], None]
Submit = Callable[[Job, str, int], "Future[None]"]

ENGINES = ("processes", "ray")
# A worker that is killed again and again without one shard between is no accident.
PATIENCE = 3


@dataclass(frozen=True)
class Engine:
    """How shards are made.

    Attributes:
        engine: "processes" of this machine, or "ray" (an extra): a local cluster, or the one that
            RAY_ADDRESS names, whose machines see the zoo's directory.
        workers: Number of workers; 0 makes the shards one after the other in this process.
        threads: Threads of each worker; more than one rounds differently.
    """

    engine: str = "processes"
    workers: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise unknown("engine", self.engine, ENGINES, where="--engine")
        if self.workers < 0 or self.threads < 1:
            raise InputError(
                f"workers = {self.workers} and threads = {self.threads} cannot be",
                where="engine",
                fix="give workers >= 0 and threads >= 1",
            )

    def start(self, job: Job, zoo: str, numbers: Sequence[int]) -> Running:
        """Begin to make shards, in this order; see `Running`."""
        return Running(self, job, zoo, numbers)


class Running:
    """Shards that are being made. Leaving the block stops what has not been started."""

    def __init__(self, engine: Engine, job: Job, zoo: str, numbers: Sequence[int]) -> None:
        self.engine, self.job = engine, job
        self.zoo = str(Path(zoo).resolve())  # workers may be elsewhere
        self.left = list(numbers)
        self.futures: dict[Future[None], int] = {}
        self.executor: Executor | None = None
        self.cluster: Any = None  # Ray, where we started it
        self.failures = 0
        if engine.workers:
            self._submit()

    def poll(self, seconds: float | None = None) -> list[int]:
        """The shards that were finished since the last call.

        Where this process makes the shards, one is made now.

        Args:
            seconds: Longest time to wait for the first one; without a limit by default.

        Raises:
            LtdiError: What a worker raised.
        """
        if not self.engine.workers:
            number = self.left[0]
            self.job(self.zoo, number)
            return [self.left.pop(0)]
        done, _ = wait(self.futures, seconds, FIRST_COMPLETED)
        finished = []
        try:
            for future in sorted(done, key=lambda f: self.futures[f]):
                number = self.futures.pop(future)
                future.result()
                self.left.remove(number)
                finished.append(number)
                self.failures = 0
        except BrokenProcessPool:
            self._again()
        return sorted(finished)

    def close(self) -> None:
        """Stop: what is being made is made to its end, the rest is not begun."""
        for future in self.futures:
            future.cancel()
        self.futures = {}
        if self.executor is not None:
            self.executor.shutdown(wait=True, cancel_futures=True)
            self.executor = None
        if self.cluster is not None:
            self.cluster.shutdown()
            self.cluster = None

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(self) -> None:
        submit = self._ray() if self.engine.engine == "ray" else self._processes()
        self.futures = {submit(self.job, self.zoo, number): number for number in self.left}

    def _again(self) -> None:
        """A worker was killed: the others stop, and all are started anew with what is left."""
        self.failures += 1
        self.close()
        if self.failures >= PATIENCE:
            raise LtdiError(
                f"workers died {self.failures} times without finishing a shard",
                where=f"shard {self.left[0]} of {self.zoo}",
                fix="look for what killed them (memory?), or use fewer workers",
            ) from None
        self._submit()

    def _processes(self) -> Submit:
        pool = ProcessPoolExecutor(
            self.engine.workers,
            # Threads of torch do not survive a fork.
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(self.engine.threads,),
        )
        self.executor = pool
        return pool.submit

    def _ray(self) -> Submit:
        ray = optional("ray", purpose="--engine ray", extra="ray", where="--engine")
        if not ray.is_initialized():
            local = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": self.engine.workers}
            ray.init(logging_level="error", log_to_driver=False, **local)
            self.cluster = ray
        threads = self.engine.threads

        # A worker that dies is replaced by Ray, and its shard made again.
        @ray.remote(num_cpus=1, max_retries=-1)  # type: ignore[untyped-decorator, unused-ignore]
        def make(job: Job, zoo: str, number: int) -> None:
            import torch

            torch.set_num_threads(threads)
            job(zoo, number)

        def submit(job: Job, zoo: str, number: int) -> Future[None]:
            future: Future[None] = make.remote(job, zoo, number).future()
            return future

        return submit


def _begin(threads: int) -> None:
    """First thing in a worker process."""
    import torch

    torch.set_num_threads(threads)
    # Ctrl-C is for the process that started the workers, which ends them in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent: Any = multiprocessing.parent_process()
    # A parent that was killed cannot end them: then they end themselves.
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
