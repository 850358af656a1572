"""What it costs to have solo-infoaug installed: `import solo_infoaug`, and other Hydra programs.

    uv run python benchmarks/startup.py

Starts an unrelated Hydra program by turns with our Hydra plugin and without (its namespace package
is hidden), and takes medians.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNS = 15

_PROGRAM = """
import os, sys
if os.environ.get("HIDE_PLUGINS"):
    sys.modules["hydra_plugins"] = None
import hydra

@hydra.main(version_base=None, config_path=None)
def main(cfg):
    pass

main()
"""


def _seconds(command: list[str], folder: str, **env: str) -> float:
    start = time.perf_counter()
    subprocess.run(
        command, cwd=folder, env={**os.environ, **env}, check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - start


def main() -> None:
    """Print the two costs in milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "app.py"
        program.write_text(_PROGRAM)
        hydra = [sys.executable, str(program), "hydra.run.dir=."]
        with_us, without_us, imports, empty = [], [], [], []
        for _ in range(RUNS):
            with_us.append(_seconds(hydra, folder))
            without_us.append(_seconds(hydra, folder, HIDE_PLUGINS="1"))
            imports.append(_seconds([sys.executable, "-c", "import solo_infoaug"], folder))
            empty.append(_seconds([sys.executable, "-c", "pass"], folder))
    ours, theirs, imported, nothing = (
        1000 * statistics.median(times) for times in (with_us, without_us, imports, empty)
    )
    print(f"median of {RUNS} runs, ms")
    print(
        f"Hydra program: {theirs:.0f} without the plugin, {ours:.0f} with it: {ours - theirs:+.0f}"
    )
    print(f"import solo_infoaug: {imported - nothing:.0f} over an empty program ({nothing:.0f})")


if __name__ == "__main__":
    main()
