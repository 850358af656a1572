from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path

import cv2
import pytest
import torch
from filelock import FileLock

from solo_infoaug import __version__
from solo_infoaug.dictionary import packs
from solo_infoaug.dictionary.files import keys_in
from solo_infoaug.dictionary.packs import Finished
from solo_infoaug.dictionary.writing import VideoWriter
from solo_infoaug.errors import ConfigError
from solo_infoaug.mining import MineConfig, mine, mine_one, pipeline, plan, workers
from solo_infoaug.mining.corpus import Corpus
from solo_infoaug.mining.ledger import Ledger, Outcome, Result
from solo_infoaug.mining.video import video_digest
from solo_infoaug.mining.workers import Job, Work, run_jobs

SMALL = MineConfig(min_frames=24, window=64, stride=64, temporal_crops=2, camera="none", parallax=0)

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray")


@pytest.fixture
def only_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Processes of the tests take turns: Ray's "auto" finds any cluster of the machine."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with FileLock(shared / "ray.lock"):
        yield


def _jobs(*names: str) -> list[Job]:
    return [Job(Path(name)) for name in names]


_WORK = '''
import os, signal
from solo_infoaug.errors import ConfigError

def work(folder, job):
    """Notes the call; `die` ends its process, `once` does so the first time, `bad` fails."""
    with (folder / job.path.name).open("a") as file:
        file.write("x")
    first = (folder / job.path.name).stat().st_size == 1
    if job.path.name == "die" or (job.path.name == "once" and first):
        os.kill(os.getpid(), signal.SIGKILL)
    if job.path.name == "raise":
        raise ConfigError("no such thing")
    return "it is bad" if job.path.name == "bad" else None
'''


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    """In a module of its own, which the workers can import."""
    (tmp_path / "work_for_tests.py").write_text(_WORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "work_for_tests", raising=False)
    return partial(importlib.import_module("work_for_tests").work, tmp_path)


def test_serial(work: Work) -> None:
    done = dict(run_jobs(_jobs("a", "bad", "c"), work))
    by_name = {job.path.name: why for job, why in done.items()}
    assert by_name == {"a": None, "bad": "it is bad", "c": None}


def test_a_worker_that_dies_takes_no_other_job_with_it(work: Work) -> None:
    jobs = _jobs("a", "bad", "once", "die", "b")
    done = {job.path.name: why for job, why in run_jobs(jobs, work, workers=2)}
    assert done.pop("die") == "die: the process that mined it died (out of memory?)"
    assert done == {"a": None, "bad": "it is bad", "once": None, "b": None}


def test_errors_of_a_worker_are_raised(work: Work) -> None:
    with pytest.raises(ConfigError, match="no such thing"):
        list(run_jobs(_jobs("a", "raise"), work, workers=2))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, write_video, scene) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    frames = scene[0]
    return [
        write_video(folder / f"{name}.mp4", part)
        for name, part in (("a", frames), ("b", frames[::-1]), ("c", frames[10:] + frames[:10]))
    ]


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory, videos: list[Path]) -> Path:
    out = tmp_path_factory.mktemp("serial") / "twins"
    mine(videos, out, SMALL, progress=False)
    return out


def test_workers_make_the_same_dictionary(tmp_path: Path, videos: list[Path], serial: Path) -> None:
    mine(videos[::-1], tmp_path / "twins", SMALL, workers=2, progress=False)
    assert _files(tmp_path / "twins") == _files(serial)


def test_packs_follow_the_order_of_the_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever is finished first: here the last one, and the second fails."""
    monkeypatch.setattr(packs, "_PACK_VIDEOS", 2)
    out, files = tmp_path / "twins", [tmp_path / f"{name}.mp4" for name in "abcdef"]
    out.mkdir()
    for size, file in enumerate(files):
        file.write_bytes(b"x" * size)
    finished, packed = Finished(out), list[int]()

    def backwards(todo: list[Job], *_: object) -> Iterator[tuple[Job, Result]]:
        for job in todo[::-1]:
            packed.append(len(finished.packs()))
            yield job, _without_twins(job, out)

    def run(finished: Finished) -> dict[str, str]:
        corpus = Corpus([*files], Ledger(out))
        how = pipeline._How(workers=1)
        return pipeline._mine_sources(corpus, finished, SMALL, how)

    monkeypatch.setattr(pipeline, "run_jobs", backwards)
    assert run(finished) == {str(files[1]): "it is bad"}
    assert packed == [0] * 6  # none before the first video was there
    keys = [[key[0] for key in keys_in(pack)] for pack in finished.packs()]
    assert keys == [["a", "c"], ["d", "e"]]
    assert [path.name[0] for path in (out / "parts").iterdir()] == ["f"]
    # A second run has nothing to do but the one that failed
    todo: list[Job] = []
    monkeypatch.setattr(pipeline, "run_jobs", lambda left, *_: iter(todo.extend(left) or []))
    run(Finished(out))
    assert todo == [Job(files[1])]


def _without_twins(job: Job, out: Path) -> Result:
    """What mining leaves of a video in which nothing moves; `b` fails."""
    assert isinstance(job.path, Path)
    name = job.path.stem
    if name == "b":
        return Result([Outcome(why="it is bad", kind="video")])
    digest = video_digest(job.path)
    key = plan.part_key(name, digest, SMALL)
    writer = VideoWriter(out, key, job.path.name, {"mined_with": __version__})
    writer.finish_without_twins("nothing moves")
    return Result([Outcome(digest=digest)])


def test_threads_make_the_same_dictionary(tmp_path: Path, videos: list[Path], serial: Path) -> None:
    """With one thread nothing is decoded ahead; the serial run had all of them."""
    before = cv2.getNumThreads(), torch.get_num_threads()
    mine(videos, tmp_path / "twins", SMALL, threads=1, progress=False)
    assert _files(tmp_path / "twins") == _files(serial)
    assert (cv2.getNumThreads(), torch.get_num_threads()) == before
    for name in ("workers", "threads"):
        with pytest.raises(ConfigError, match=f"{name}: expected at least 1, got 0"):
            mine(videos, tmp_path / "twins", SMALL, progress=False, **{name: 0})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"workers": 1}, (1, None)),
        ({"workers": None}, (3, 2)),
        ({"workers": 2}, (2, 3)),
        ({"workers": 2, "threads": 1}, (2, 1)),
        ({"workers": 9}, (9, 1)),
        ({"workers": None, "videos": 1}, (1, None)),
        ({"workers": None, "videos": 0}, (1, None)),
        ({"workers": 1, "ray": True}, (1, 1)),
    ],
)
def test_shares_of_six_cores(
    monkeypatch: pytest.MonkeyPatch, given: dict, expected: tuple[int, int | None]
) -> None:
    monkeypatch.setattr(pipeline, "usable_cores", lambda: 6)
    assert pipeline._shares(**{"threads": None, "videos": 3, "ray": False, **given}) == expected


def test_ahead() -> None:
    made: list[int] = []

    def items() -> Generator[int]:
        for number in range(4):
            made.append(number)
            yield number
        raise ConfigError("no more")

    with mine_one._ahead(items(), 1) as ahead:
        assert [next(ahead), next(ahead)] == [0, 1]
    assert made == [0, 1, 2]
    made.clear()
    with mine_one._ahead(items(), 2) as ahead:
        assert next(ahead) == 0
    assert made == [0, 1, 2]
    with mine_one._ahead(items(), 2) as ahead, pytest.raises(ConfigError, match="no more"):
        list(ahead)


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_kill_and_resume(tmp_path: Path, videos: list[Path], serial: Path) -> None:
    """kill −9 when a video is finished, and when workers are at work; the third run ends alike."""
    out = tmp_path / "twins"
    command = [sys.executable, "-m", "solo_infoaug.cli", "mine", *map(str, videos), "-o", str(out)]
    for name in ("min_frames", "window", "stride", "temporal_crops", "camera", "parallax"):
        command += ["-s", f"{name}={getattr(SMALL, name)}"]

    def started(workers: int) -> subprocess.Popen[bytes]:
        quiet = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        return subprocess.Popen([*command, "-j", str(workers)], **quiet)

    def unfinished() -> set[int]:
        return {int(path.suffix[1:]) for path in out.glob("parts/.*")}

    process = started(1)
    _wait_until(lambda: any(out.glob("parts/[!.]*")))
    process.kill()
    process.wait()
    before = unfinished()

    process = started(2)
    _wait_until(lambda: unfinished() - before != set())
    workers = unfinished() - before
    assert process.pid not in workers
    process.kill()
    process.wait()
    _wait_until(lambda: not any(map(_running, workers)), 30)

    assert not (out / "dictionary.json").exists()
    assert any(out.glob("parts/[!.]*"))
    subprocess.run([*command, "-j", "1"], check=True, capture_output=True)
    assert _files(out) == _files(serial)


@pytest.mark.slow
@needs_ray
@pytest.mark.usefixtures("only_ray")
def test_ray_makes_the_same_dictionary_and_loses_nothing_with_a_worker(
    tmp_path: Path, videos: list[Path], serial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker is killed when it has written everything but the last name."""
    out, real = tmp_path / "twins", pipeline.mine_job

    def deadly(folder: Path, config: MineConfig, threads: int | None, job: Job) -> str | None:
        first = folder.parent / "died"
        if job.path.stem == "b" and not first.exists():
            first.touch()
            VideoWriter.finish = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        return real(folder, config, threads, job)

    monkeypatch.setattr(pipeline, "mine_job", deadly)
    mine(videos[::-1], out, SMALL, ray="local", progress=False)
    assert (tmp_path / "died").exists()
    assert _files(out) == _files(serial)


@pytest.mark.slow
@needs_ray
@pytest.mark.usefixtures("only_ray")
def test_ray_reports_what_dies_and_raises_what_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(job: Job) -> str | None:
        with (tmp_path / job.path.name).open("a") as file:
            file.write("x")
        if job.path.name == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if job.path.name == "raise":
            raise ConfigError("no such thing")
        return "it is bad" if job.path.name == "bad" else None

    import ray

    monkeypatch.setattr(workers, "_TRIES", 2)
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    with ray.init(address="local", num_cpus=2, log_to_driver=False):
        done = {job.path.name: why for job, why in run_jobs(_jobs("bad", "die"), work, ray="auto")}
        assert done["die"] == "die: the worker that mined it died: WorkerCrashedError"
        assert done["bad"] == "it is bad"
        assert (tmp_path / "die").read_text() == "xx"
        with pytest.raises(ConfigError, match="no such thing"):
            list(run_jobs(_jobs("raise"), work, ray="auto"))


@needs_ray
@pytest.mark.usefixtures("only_ray")
def test_no_ray_cluster(work: Work) -> None:
    with pytest.raises(ConfigError, match="no Ray cluster at 'auto'"):
        list(run_jobs(_jobs("a"), work, ray="auto"))


@needs_ray
@pytest.mark.usefixtures("only_ray")
@pytest.mark.parametrize("address", ["127.0.0.1:9", "127.0.0.1:99999", "no.such.host.invalid:1"])
def test_an_address_where_nobody_answers(work: Work, address: str) -> None:
    """Ray itself would try for minutes, and end the process."""
    with pytest.raises(ConfigError, match=f"no Ray cluster at '{address}'"):
        list(run_jobs(_jobs("a"), work, ray=address))


def test_ray_missing(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r'pip install "solo-infoaug\[ray\]"'):
        list(run_jobs(_jobs("a"), work, ray="auto"))


def test_workers_leave_ctrl_c_to_us() -> None:
    """From their first moment on: whoever is still importing has no traceback to print."""
    before = signal.getsignal(signal.SIGINT)
    with workers._pool(1) as (pool, _):
        with workers._interrupts_are_ours():
            answer = pool.submit(signal.getsignal, signal.SIGINT)
        assert answer.result() == signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) == before


def test_workers_are_stopped_when_something_is_raised() -> None:
    def interrupted() -> None:
        with workers._pool(1) as (pool, _):
            assert pool.submit(os.getpid).result() > 0
            pool.submit(time.sleep, 1000)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not multiprocessing.active_children()


def test_a_script_without_a_main_guard_is_told_so(tmp_path: Path, video: Path) -> None:
    other = tmp_path / "other.mp4"
    other.write_bytes(video.read_bytes() + b"\0")
    script = tmp_path / "script.py"
    script.write_text(
        f"import solo_infoaug\nsolo_infoaug.mine([{str(video)!r}, {str(other)!r}], "
        f"{str(tmp_path / 'twins')!r}, workers=2, progress=False)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert 'Call mine() under `if __name__ == "__main__":`' in done.stderr
    assert done.stderr.count("Traceback") == 1  # the workers add none
