"""Dictionaries as earlier versions wrote them."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path


def as_folders(path: Path, version: int = 3, keep: bool = False) -> Path:
    """Make the dictionary in `path` one of format 3, whose packs are unpacked; returns `path`.

    With `keep` the packs stay as well, for those who have opened them; no manifest names them.
    """
    manifest = path / "dictionary.json"
    content = json.loads(manifest.read_text())
    if content["version"] < 4:
        return path
    for pack in sorted((path / "packs").iterdir()):
        with zipfile.ZipFile(pack) as file:
            file.extractall(path / "parts")
    if not keep:
        shutil.rmtree(path / "packs")
        (path / "index.safetensors").unlink()
    for record in (path / "parts").glob("*/*.json"):
        record.write_text(json.dumps({**json.loads(record.read_text()), "version": version}))
    for key in ("names", "packs", "fingerprint", "index"):
        del content[key]
    manifest.write_text(json.dumps({**content, "version": version}))
    return path


def with_former_names(path: Path) -> Path:
    """Name the settings of the dictionary in `path` as they were first named; returns `path`."""
    former = {
        "temporal_crops": "moments",
        "extra_patches": "others",
        "max_forward_backward_error": "max_roundtrip",
    }
    manifest = path / "dictionary.json"
    content = json.loads(manifest.read_text())
    content["config"] = {former.get(name, name): v for name, v in content["config"].items()}
    manifest.write_text(json.dumps(content))
    return path
