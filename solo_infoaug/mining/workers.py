"""Many videos at a time: by processes on one machine, or over a Ray cluster."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from typing import TYPE_CHECKING, Any

from threadpoolctl import threadpool_limits

from solo_infoaug._jpeg import usable_cores as usable_cores
from solo_infoaug.errors import ConfigError

if TYPE_CHECKING:
    from solo_infoaug.mining.inputs import Source

# How often a video is tried whose worker dies: the first time among others, then alone.
_TRIES = 3
# Seconds that a Ray cluster has to answer.
_PATIENCE = 10
# In the environment of worker processes: who started them.
_STARTED_BY = "_SOLO_INFOAUG_STARTED_BY"
_UNGUARDED = (
    "workers: the worker processes ended while they were starting, because each runs the script "
    'from the beginning. Call mine() under `if __name__ == "__main__":`, or pass workers=1'
)


@dataclass(frozen=True)
class Job:
    """A video, or a shard of them, to mine.

    `known` are hashes of content that need not be mined; `members` those of videos of the shard
    that need not even be read, by their paths in it.
    """

    path: Source
    known: frozenset[str] = frozenset()
    members: Mapping[str, str] = field(default_factory=dict, hash=False)


# If the worker dies, the result of a job is a sentence that says so.
Work = Callable[[Job], Any]


@contextlib.contextmanager
def thread_limit(threads: int | None) -> Iterator[None]:
    """Limit the threads of OpenCV, torch, NumPy and compiled functions; None changes nothing."""
    import cv2
    import torch

    if threads is None:
        yield
        return
    before = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(threads)
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads, user_api="blas"):
            yield
    finally:
        cv2.setNumThreads(before[0])
        torch.set_num_threads(before[1])


def end_if_unguarded() -> None:
    """End a worker process that runs an unguarded script during its start.

    Such a script would start workers of its own. Python would raise an error in each worker;
    instead, the process that started them says what is wrong.
    """
    starting = getattr(multiprocessing.current_process(), "_inheriting", False)
    if starting and os.environ.get(_STARTED_BY) == str(os.getppid()):
        os._exit(1)


def run_jobs(
    jobs: list[Job],
    work: Work,
    workers: int = 1,
    ray: str | None = None,
    gpu: bool = False,
    cpus: int = 1,
) -> Iterator[tuple[Job, Any]]:
    """Do all jobs; yields each with what `work` returned for it, as they finish.

    If a worker dies, the jobs that were running are tried again, each in a worker of its own. A job
    whose own worker dies is reported as failed. No other job is lost.

    Exceptions of `work` are raised here. With one worker, this process does the jobs. `ray` is the
    address of a cluster, "auto" or "local"; it is asked for `cpus` and perhaps a GPU for each job.

    Raises:
        ConfigError: Ray is not installed or does not answer, or workers cannot start.
    """
    if not jobs:
        return
    if ray is not None:
        yield from _on_ray(jobs, work, ray, gpu, cpus)
    elif workers == 1:
        for job in jobs:
            yield job, work(job)
    else:
        yield from _by_processes(jobs, work, min(workers, len(jobs)))


def _by_processes(jobs: list[Job], work: Work, workers: int) -> Iterator[tuple[Job, Any]]:
    waiting = deque(jobs)
    suspects: list[Job] = []  # running when a worker died: any may be the cause
    while waiting:
        with _pool(workers) as (pool, started):
            running: dict[Future[Any], Job] = {}
            broken = False
            while running or (waiting and not broken):
                # Submit only what begins at once: what is submitted is a suspect.
                while waiting and not broken and len(running) < workers:
                    job = waiting.popleft()
                    try:
                        with _interrupts_are_ours():
                            running[pool.submit(work, job)] = job
                    except BrokenProcessPool:
                        waiting.appendleft(job)
                        broken = True
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job = running.pop(future)
                    try:
                        yield job, future.result()
                    except BrokenProcessPool:
                        if not started.is_set():
                            raise ConfigError(_UNGUARDED) from None
                        suspects.append(job)
                        broken = True
    for job in suspects:
        yield job, _alone(job, work)


def _alone(job: Job, work: Work) -> Any:
    for _ in range(_TRIES - 1):
        with _pool(1) as (pool, _):
            try:
                with _interrupts_are_ours():
                    doing = pool.submit(work, job)
                return doing.result()
            except BrokenProcessPool:
                continue
    return f"{job.path}: the process that mined it died (out of memory?)"


@contextlib.contextmanager
def _pool(size: int) -> Iterator[tuple[ProcessPoolExecutor, Event]]:
    """Worker processes, which are stopped if an exception is raised.

    The event is set once one of them has started.
    """
    # Forking breaks threads of OpenCV and torch.
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    started = context.Event()
    os.environ[_STARTED_BY] = str(os.getpid())
    with ProcessPoolExecutor(size, context, _begin, (started,)) as pool:
        try:
            yield pool, started
        except BaseException:
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()
            raise


def _interrupts_are_ours() -> contextlib.AbstractContextManager[None]:
    """Processes that are started inside ignore Ctrl-C from the start; we stop them ourselves.

    Otherwise each would print the traceback of what it was importing.
    """
    return handled(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def handled(number: signal.Signals, handler: Any) -> Iterator[None]:
    """Inside, a signal is handled in this way. Handlers can only be set in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def _begin(started: Event) -> None:
    """What each worker does first. It ends when its parent is killed.

    Otherwise it could write into the next run.
    """
    started.set()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _check_address(address: str) -> None:
    """Check that somebody answers: otherwise Ray tries for minutes and then ends the process."""
    host, colon, port = address.rpartition(":")
    if not colon or "://" in address or not port.isdigit():
        return  # auto, local, or what Ray itself judges at once
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"no Ray cluster at {address!r}: {error}") from error


def _on_ray(
    jobs: list[Job], work: Work, address: str, gpu: bool, cpus: int
) -> Iterator[tuple[Job, Any]]:
    if address == "local":
        # Under `uv run`, Ray would build an environment of its own for each worker. Read on import.
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            'mining on Ray needs it installed: pip install "solo-infoaug[ray]"'
        ) from error
    started = not ray.is_initialized()
    if started:
        _check_address(address)
        try:
            ray.init(address=address, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(f"no Ray cluster at {address!r}: {error}") from error
    try:

        def task(job: Job) -> Any:
            return work(job)

        needs = {"num_cpus": cpus, "num_gpus": 1 if gpu else 0, "max_retries": _TRIES - 1}
        remote: Any = ray.remote(**needs)(task)
        running = {remote.remote(job): job for job in jobs}
        while running:
            (done,), _ = ray.wait(list(running), num_returns=1)
            job = running.pop(done)
            try:
                yield job, ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.as_instanceof_cause() from error
            except ray.exceptions.RayError as error:
                yield job, f"{job.path}: the worker that mined it died: {type(error).__name__}"
    finally:
        if started:
            ray.shutdown()
