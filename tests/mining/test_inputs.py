"""Videos from stores and tar shards: the same twins as from the disk, and nothing read twice."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from solo_infoaug.cli import app
from solo_infoaug.dictionary import TwinDictionary
from solo_infoaug.dictionary.tools import merge
from solo_infoaug.errors import ConfigError, VideoError
from solo_infoaug.mining import MineConfig, content, mine, mine_one, shards, stores
from solo_infoaug.mining.inputs import expand_braces, find_inputs, parse_share, share_of
from solo_infoaug.mining.status import status_of
from solo_infoaug.mining.video import video_digest

# All of the group `dev`; without them only these tests are skipped
for _package in ("moto.server", "s3fs", "boto3"):
    pytest.importorskip(_package, reason=f"needs {_package}: uv sync --group dev")
braceexpand = pytest.importorskip("braceexpand", reason="needs webdataset: uv sync --group dev")
webdataset = pytest.importorskip("webdataset", reason="needs webdataset: uv sync --group dev")

from .store_server import SECRET, Fault, Hub, Store, serve, serve_store  # noqa: E402

SMALL = MineConfig(min_frames=24, temporal_crops=2, camera="none", parallax=0)
SETTINGS = [
    *("-s", "min_frames=24", "-s", "temporal_crops=2"),
    *("-s", "camera=none", "-s", "parallax=0", "-j", "1"),
]


@pytest.fixture(scope="session")
def server() -> Iterator[Store]:
    store = Store()
    end = serve_store(store)
    yield store
    end()


@pytest.fixture
def store(server: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The server, with an empty bucket `clips`, and the environment that leads to it."""
    from moto.s3.models import s3_backends

    for name, value in _environment(server).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(stores, "FIRST_WAIT", 0.01)
    for account in s3_backends.values():
        for backend in account.values():
            backend.reset()
    server.make_bucket("clips")
    server.asked.clear()
    yield server
    server.faults.clear()
    server.before = None


def _environment(server: Store) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, write_video, scene) -> list[Path]:
    """Three clips of one window, with one of the two objects: what is tested is how they come."""
    folder = tmp_path_factory.mktemp("clips")
    frames = [frame[:, :128] for frame in scene[0]]
    return [
        write_video(folder / f"{name}.mp4", part)
        for name, part in (("a", frames[:24]), ("b", frames[23::-1]), ("c", frames[24:48]))
    ]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, clips: list[Path]) -> Path:
    """What is mined from the disk."""
    out = tmp_path_factory.mktemp("local") / "twins"
    mine(clips, out, SMALL, progress=False)
    return out


def _but_for_names(folder: Path) -> dict[str, bytes]:
    """All files of a dictionary, without the lists that name sources."""
    found = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }
    manifest = json.loads(found["dictionary.json"])
    for name in ("left_out", "duplicates", "failed", "twinless"):
        manifest.pop(name, None)
    return {**found, "dictionary.json": json.dumps(manifest, sort_keys=True).encode()}


def _noted(folder: Path) -> dict[str, str]:
    """Which videos of which sources the ledger knows: the content's hash by their names."""
    lines = map(json.loads, (folder / ".sources.jsonl").read_text().splitlines())
    return {
        f"{line['source']}/{line['video']}": line["sha256"] for line in lines if "video" in line
    }


def _by_video(dictionary: TwinDictionary) -> dict[str, tuple[bytes, ...]]:
    """Twins, their MI, places and pixels of each video, whatever the order of these."""
    found = {}
    for number, name in enumerate(dictionary.videos):
        rows = np.flatnonzero(dictionary.patches["video"] == number)
        twins = dictionary.twins[rows].numpy()
        places = [dictionary.patches[rows][column].tobytes() for column in ("frame", "x", "y")]
        arrays = np.where(twins < 0, -1, twins - rows[0]), dictionary.mi[rows].numpy()
        pixels = dictionary.crops(torch.from_numpy(rows), 0).numpy()
        found[name] = (*places, *(array.tobytes() for array in (*arrays, pixels)))
    return found


@pytest.fixture
def mined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the videos that are mined while the test runs, by this process."""
    names: list[str] = []
    real = mine_one.mine_video

    def noted(path: Path, *args: object, **options: object) -> float:
        names.append(path.name)
        return real(path, *args, **options)

    monkeypatch.setattr(mine_one, "mine_video", noted)
    return names


def _tar(clips: list[Path]) -> bytes:
    """A shard as WebDataset writes it, with a .json beside each clip."""
    target = io.BytesIO()
    with webdataset.TarWriter(target) as tar:
        for clip in clips:
            tar.write({"__key__": f"deep/{clip.stem}", "mp4": clip.read_bytes(), "json": {"n": 1}})
    return target.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        "plain.tar",
        "s3://bucket/{00000..00012}.tar",
        "{train,val}-{0..3}.tar",
        "x{9..11}y",
        "{01..3}",
        "{5..1..2}",
        "{a..e..2}{C..A}",
        "a{b,c{d,e}}f",
        "{only}",
        "{}",
        "{-2..2}",
        "{a..3}",
        "unfinished{1..3",
    ],
)
def test_braces_as_webdataset_has_them(text: str) -> None:
    if text == "unfinished{1..3":
        assert expand_braces(text) == [text]
    else:
        assert expand_braces(text) == list(braceexpand.braceexpand(text))


def test_the_same_dictionary_from_a_store_and_from_shards(
    tmp_path: Path, store: Store, clips: list[Path], local: Path, mined: list[str]
) -> None:
    """Files, a folder, shards there and here, a list; and nothing is read again."""
    expected = _but_for_names(local)
    for clip in clips:
        store.put(f"films/deep/{clip.name}", clip.read_bytes())
    store.put("films/deep/notes.txt", b"x")
    store.put("shards/00.tar", _tar(clips[:2]))
    store.put("shards/01.tar", _tar(clips[2:]))
    (tmp_path / "here.tar").write_bytes(_tar(clips[1:]))
    names = ["# what to mine", "", "s3://clips/shards/00.tar", "here.tar"]
    (tmp_path / "list.txt").write_text("\n".join(names))
    sources = {
        "folder": ["s3://clips/films"],
        "pattern": ["s3://clips/films/*/[ab].mp4", "s3://clips/films/deep/c.mp4"],
        "shards": ["s3://clips/shards/{00..01}.tar"],
        "list": [str(tmp_path / "list.txt")],
    }
    for name, given in sources.items():
        out = tmp_path / name
        made = mine(given, out, SMALL, progress=False) if name != "folder" else None
        if made is None:
            with pytest.warns(UserWarning, match=r"left out what is not known as video: 1 \.txt"):
                made = mine(given, out, SMALL, progress=False)
        assert _but_for_names(out) == expected, name
        assert made.fingerprint == TwinDictionary.load(local).fingerprint
    assert _noted(tmp_path / "shards") == {
        f"s3://clips/shards/{number}.tar/deep/{clip.name}": video_digest(clip)
        for number, clip in zip(("00", "00", "01"), clips, strict=True)
    }
    # b is in two shards
    assert TwinDictionary.load(tmp_path / "list").info["duplicates"].keys() in (
        {"s3://clips/shards/00.tar/deep/b.mp4"},
        {f"{tmp_path}/here.tar/deep/b.mp4"},
    )
    store.asked.clear()
    mined.clear()
    for name in ("pattern", "shards", "list"):
        mine(sources[name], tmp_path / name, SMALL, progress=False)
    assert store.gets(".mp4") == store.gets(".tar") == mined == []


def test_a_data_set_on_the_hub(
    tmp_path: Path, clips: list[Path], local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own: the client reads its address from the environment once."""
    files = {f"data/{clip.name}": clip.read_bytes() for clip in clips[:2]}
    hub = Hub({**files, "s.tar": _tar(clips[2:]), "README.md": b"x"})
    url, end = serve(hub)
    monkeypatch.setenv("HF_ENDPOINT", url)
    command = [sys.executable, "-m", "solo_infoaug.cli", "mine", "hf://datasets/OWNER/NAME"]
    run = [*command, "-o", str(tmp_path / "twins"), *SETTINGS]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    end()
    assert done.returncode == 0, done.stderr
    assert "left out what is not known as video: 1 .md" in done.stderr
    assert _but_for_names(tmp_path / "twins") == _but_for_names(local)
    sizes = [len(data) for name, data in hub.files.items() if name != "README.md"]
    assert sorted(hub.ranges) == sorted(f"bytes=0-{size - 1}" for size in sizes)


def test_large_videos_are_read_in_pieces(
    tmp_path: Path, store: Store, clips: list[Path], local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("a.mp4", clips[0].read_bytes())
    store.put("0.tar", _tar(clips[1:]))
    for module in (content, shards):
        monkeypatch.setattr(module, "IN_MEMORY", 1000)
    monkeypatch.setattr(stores, "BLOCK", 5000)
    mine(["s3://clips/a.mp4", "s3://clips/0.tar"], tmp_path / "twins", SMALL, progress=False)
    assert _but_for_names(tmp_path / "twins") == _but_for_names(local)
    assert len(store.gets("a.mp4")) > clips[0].stat().st_size // 5000


def test_what_is_excluded_and_left_out(tmp_path: Path, store: Store, clips: list[Path]) -> None:
    for key in ("a.mp4", "raw/a.mp4", "raw/b.mp4", ".hidden.mp4", "c.mp4.part", "n.json"):
        store.put(f"x/{key}", clips[0].read_bytes() + key.encode())
    store.put("x/s.tar", _tar(clips))
    found, notes = find_inputs(["s3://clips/x/", "s3://clips/x/a.mp4"], ["raw/", "b*"])
    assert [str(one) for one in found] == ["s3://clips/x/a.mp4", "s3://clips/x/s.tar"]
    assert notes == [
        "s3://clips/x/: left out what is not known as video: "
        "1 .json, 1 hidden, 1 partly downloaded",
        "excluded by 'raw/': 1 folders",
        "excluded by 'b*': nothing",
    ]
    with pytest.warns(UserWarning, match=r"excluded by 'b\*': nothing"):
        made = mine("s3://clips/x/s.tar", tmp_path / "t", SMALL, exclude=["b*"], progress=False)
    assert made.videos == ["a.mp4", "c.mp4"]
    assert made.info["left_out"] == [
        "excluded by 'b*': nothing",
        "1 tar shards: left out what is not known as video: 3 .json",
        "excluded by 'b*' in tar shards: 1 files",
    ]


def test_sources_that_are_not_there(tmp_path: Path, store: Store, clips: list[Path]) -> None:
    store.put("notes.txt", b"s3://clips/list.txt\n")
    for given, told in (
        ("s3://clips/none", "s3://clips/none: no such file or folder in the store"),
        ("s3://clips/*.mp4", r"no file matches s3://clips/\*\.mp4"),
        (str(tmp_path / "*.mp4"), "no file or folder matches"),
        (str(tmp_path / "{0..1}.mp4"), r"no such video: .*/0\.mp4"),
        ("s3://clips/notes.txt", "s3://clips/notes.txt: expected videos, got another list"),
        ("s3://clips/0.tar.gz", "no such file"),
    ):
        with pytest.raises(VideoError, match=told):
            find_inputs([given])
    with pytest.raises(ConfigError, match="nope://x: cannot be read: Protocol not known"):
        find_inputs(["nope://x"])
    (tmp_path / "x.tgz").write_bytes(b"x")
    with pytest.raises(VideoError, match="a compressed tar cannot be read in parts"):
        find_inputs([tmp_path / "x.tgz"])


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ConfigError, match=r'pip install "solo-infoaug\[gcs\]"'):
        find_inputs(["gs://bucket/a.mp4"])


def test_no_secret_is_printed_or_stored(
    tmp_path: Path, store: Store, clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the environment's nor a URL's, in what works and in what fails in several ways."""
    for name in ("a.mp4", "bad.mp4", "gone.mp4", "denied.mp4"):
        data = clips[0].read_bytes() if name == "a.mp4" else b"no video"
        store.put(name, data)
    store.put("b.mp4", clips[1].read_bytes())
    store.faults += [Fault("gone", 503), Fault("denied", 403)]
    host = store.url.removeprefix("http://")
    tail = f"?X-Amz-Signature={SECRET}&token={SECRET}#{SECRET}"
    names = ("a", "bad", "gone", "denied")
    given = [f"http://user:{SECRET}@{host}/clips/{name}.mp4{tail}" for name in names]
    given += ["s3://clips/b.mp4", "s3://clips/gone.mp4", "s3://clips/denied.mp4"]
    (tmp_path / "list.txt").write_text("\n".join(given))
    out = tmp_path / "twins"
    run = CliRunner().invoke(app, ["mine", str(tmp_path / "list.txt"), "-o", str(out), *SETTINGS])
    assert run.exit_code == 2, run.output
    failed = TwinDictionary.load(out).info["failed"]
    assert failed["s3://clips/gone.mp4"] == (
        "s3://clips/gone.mp4: the store answers 503 (tried 5 times)"
    )
    assert "the store denies access" in failed["s3://clips/denied.mp4"]
    assert f"http://{host}/clips/gone.mp4" in failed
    assert f"http://{host}/clips/denied.mp4" in failed
    told = run.output + run.stderr
    for other in ([*given[1:2]], [f"http://user:{SECRET}@127.0.0.1:9/x.mp4{tail}"]):
        last = CliRunner().invoke(app, ["mine", *other, "-o", str(tmp_path / "no"), *SETTINGS])
        assert last.exit_code == 1
        told += f"{last.output}{last.stderr}{last.exception!r}"
    for path in tmp_path.rglob("*"):
        told += str(path)
        if path.is_file() and path.name != "list.txt":
            told += path.read_bytes().decode("latin-1")
    assert SECRET not in told
    assert "AKIAIOSFODNN7EXAMPLE" not in told


def test_a_store_that_recovers(
    tmp_path: Path, store: Store, clips: list[Path], local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Overloaded, cut off in the middle, denying once, slow: the bytes are the same."""
    from fsspec.config import conf

    monkeypatch.setitem(conf, "s3", {"config_kwargs": {"read_timeout": 1}})
    for clip in clips[:2]:
        store.put(clip.name, clip.read_bytes())
    store.put("c.tar", _tar(clips[2:]))
    store.faults += [Fault(r"a\.mp4", 503, 2), Fault(r"a\.mp4", "cut", 2), Fault(r"b\.mp4", 403, 1)]
    store.faults += [Fault(r"b\.mp4", "slow", 1), Fault(r"c\.tar", "cut", 1)]
    mine([f"s3://clips/{n}" for n in ("a.mp4", "b.mp4", "c.tar")], tmp_path, SMALL, progress=False)
    assert all(fault.times == 0 for fault in store.faults)
    assert _but_for_names(tmp_path) == _but_for_names(local)


def test_a_store_that_stays_away(
    tmp_path: Path, store: Store, clips: list[Path], mined: list[str]
) -> None:
    """What is done is kept; the others are not all tried in vain."""
    store.put("a.mp4", clips[0].read_bytes())
    for number in range(30):
        store.put(f"b/{number:02d}.mp4", clips[1].read_bytes())
    store.faults.append(Fault("b/", 403))
    sources = ["s3://clips/a.mp4", "s3://clips/b/"]
    with pytest.raises(VideoError, match="stores failed 20 times in a row: the remaining videos"):
        mine(sources, tmp_path, SMALL, progress=False)
    assert len(store.gets(".mp4")) == 2 + 1 + 20 * 2  # b/00 comes before a
    assert "store 21" in status_of(tmp_path)
    store.faults.clear()
    made = mine(sources, tmp_path, SMALL, progress=False)
    assert made.videos == ["00.mp4", "a.mp4"]
    assert len(made.info["duplicates"]) == 29
    assert mined == ["a.mp4", "00.mp4"]


def test_a_store_that_fails_while_a_video_is_decoded(
    tmp_path: Path, store: Store, clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FFmpeg takes a failed reading for the end: the video has failed, and is not a shorter one."""
    monkeypatch.setattr(content, "IN_MEMORY", 1000)
    monkeypatch.setattr(stores, "BLOCK", clips[0].stat().st_size // 4)
    store.put("a.mp4", clips[0].read_bytes())
    hashed: list[str] = []
    real = mine_one.mine_video

    def meanwhile(*args: object, **options: object) -> float:
        hashed.append("a")
        store.faults.append(Fault("a.mp4", 503))
        return real(*args, **options)

    monkeypatch.setattr(mine_one, "mine_video", meanwhile)
    with pytest.raises(VideoError, match=r"clips/a.mp4: the store answers 503 \(tried 5 times\)"):
        mine("s3://clips/a.mp4", tmp_path, SMALL, progress=False)
    assert hashed == ["a"]
    assert not list(tmp_path.glob("parts/*"))


@pytest.mark.parametrize("place", ["data", "header", "extended header", "boundary"])
def test_a_tar_that_ends_in_the_middle(
    tmp_path: Path, store: Store, clips: list[Path], local: Path, mined: list[str], place: str
) -> None:
    """What lies before that is mined, the shard is named; when it is whole, the rest is."""
    whole = _tar(clips)
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        third = tar.getmember("deep/c.mp4")
    cut = {
        "data": third.offset_data + 9999,
        "header": third.offset_data - 100,
        "extended header": third.offset + 1024,
        "boundary": third.offset,
    }[place]
    store.put("s.tar", whole[:cut])
    out = tmp_path / "twins"
    command = ["mine", "s3://clips/s.tar", "-o", str(out), *SETTINGS]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 2, run.output
    assert "s3://clips/s.tar: the tar ends in the middle; what lies before that is mined" in (
        run.output + run.stderr
    )
    assert TwinDictionary.load(out).videos == ["a.mp4", "b.mp4"]
    store.put("s.tar", whole)
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 0, run.output
    assert _by_video(TwinDictionary.load(out)) == _by_video(TwinDictionary.load(local))
    assert mined == ["a.mp4", "b.mp4", "c.mp4"]


def test_a_file_that_is_no_tar(tmp_path: Path, clips: list[Path]) -> None:
    (tmp_path / "x.tar").write_bytes(clips[0].read_bytes())
    (tmp_path / "empty.tar").write_bytes(_tar([]))
    sources = [tmp_path / "x.tar", tmp_path / "empty.tar", clips[0]]
    made = mine(sources, tmp_path / "twins", SMALL, progress=False)
    assert made.videos == ["a.mp4"]
    assert "x.tar: is no tar file" in made.info["failed"][str(tmp_path / "x.tar")]
    assert made.info["left_out"] == [f"{tmp_path / 'empty.tar'}: holds no video"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_and_run_again(
    tmp_path: Path, store: Store, clips: list[Path], local: Path, mined: list[str]
) -> None:
    """kill -9 in the middle of a shard: the next run mines the rest, and the bytes are the same."""
    store.put("s.tar", _tar(clips))
    out = tmp_path / "twins"
    command = [sys.executable, "-m", "solo_infoaug.cli", "mine", "s3://clips/s.tar", "-o", str(out)]
    run = subprocess.Popen([*command, *SETTINGS], stderr=subprocess.PIPE)
    while not list(out.glob("parts/[!.]*")):
        assert run.poll() is None, run.stderr and run.stderr.read()
    run.kill()
    run.communicate()
    assert not (out / "dictionary.json").exists()
    assert "not running; the same command continues from here" in status_of(out)
    finished = {path.name[0] for path in out.glob("parts/[!.]*")}
    mine("s3://clips/s.tar", out, SMALL, progress=False)
    assert {name[0] for name in mined} == {"a", "b", "c"} - finished
    assert len(mined) == 3 - len(finished)
    assert _but_for_names(out) == _but_for_names(local)
    hidden = {path.name for path in out.iterdir() if path.name.startswith(".")}
    assert hidden - {".lock"} == {".sources.jsonl"}


def test_shares_are_merged_into_the_same_twins(
    tmp_path: Path, clips: list[Path], local: Path
) -> None:
    (tmp_path / "copy.mp4").write_bytes(clips[0].read_bytes())  # goes where its double goes
    given = [*clips, tmp_path / "copy.mp4"]
    outs = [tmp_path / str(index) for index in range(3)]
    for index, out in enumerate(outs):
        mine(given, out, SMALL, shard=f"{index}/3", progress=False)
    shares = [set(TwinDictionary.load(out).videos) for out in outs]
    assert sorted(name for share in shares for name in share) == ["a.mp4", "b.mp4", "c.mp4"]
    merged = merge(outs, tmp_path / "merged")
    assert _by_video(merged) == _by_video(TwinDictionary.load(local))
    assert len(merged) == len(TwinDictionary.load(local))
    with pytest.raises(ConfigError, match="shard: expected at most as many jobs as the 4 videos"):
        mine(given, tmp_path / "more", SMALL, shard="7/8", progress=False)


def test_shares(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number:02d}.mp4").write_bytes(b"x" * (number // 2))
    found, _ = find_inputs([tmp_path])
    shares = [share_of(found, index, 3) for index in range(3)]
    assert {path for share in shares for path in share} == set(found)
    assert sum(map(len, shares)) == 40
    sizes = [sum(Path(str(path)).stat().st_size for path in share) for share in shares]
    assert max(sizes) - min(sizes) <= 40
    alike = [[p.name for p in share if p.name in ("10.mp4", "11.mp4")] for share in shares]
    assert sorted(alike) == [[], [], ["10.mp4", "11.mp4"]]
    assert parse_share("2/3") == (2, 3)
    for text in ("3/3", "1", "-1/2", "a/b", "0/0"):
        with pytest.raises(ConfigError, match=f"shard: expected I/N .*, got '{re.escape(text)}'"):
            parse_share(text)


def test_status_while_it_runs(
    tmp_path: Path, clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for from outside in the middle of a run, afterwards, and where nothing was mined."""
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    out, real, told = tmp_path / "twins", mine_one.mine_video, []

    def meanwhile(path: Path, *args: object, **options: object) -> float:
        told.append(status_of(out))
        return real(path, *args, **options)

    monkeypatch.setattr(mine_one, "mine_video", meanwhile)
    monkeypatch.setattr("solo_infoaug.mining.status._EVERY", 0)
    mine([*clips, tmp_path / "bad.mp4"], out, SMALL, progress=False)
    # a, b, bad, c
    last = told[-1].splitlines()
    assert last[0] == f"{out}: running"
    assert last[1].split() == ["sources", "3", "of", "4", "(videos", "or", "tar", "shards)"]
    assert last[2].split()[:3] == ["this", "run", "2"]
    assert "0.00 hours" in last[2]
    assert last[5].split() == ["failed", "video", "1"]
    assert "bad.mp4: cannot be opened as a video" in last[6]
    run = CliRunner().invoke(app, ["mine", "--status", str(out)])
    assert run.output.strip() == f"{out}: finished: 3 videos with twins, 0 without, 1 failed"
    run = CliRunner().invoke(app, ["mine", "--status", str(tmp_path / "nothing")])
    assert run.exit_code == 1
    assert "nothing was mined into this folder" in str(run.exception)


def test_nothing_more_is_imported_for_local_paths() -> None:
    program = "import sys, solo_infoaug.mining.pipeline as p; print(*sys.modules)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "solo_infoaug.mining.stores" in loaded
    assert not loaded & {"fsspec.core", "s3fs", "aiohttp", "botocore", "boto3", "huggingface_hub"}
