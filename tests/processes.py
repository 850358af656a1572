"""Python in a process of its own, and what it prints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def python(
    *arguments: object,
    cwd: Path | None = None,
    timeout: float = 500,
    check: bool = True,
    **variables: str | None,
) -> subprocess.CompletedProcess[str]:
    """Run Python to its end, with `variables` in its environment; those that are None are not.

    Unless `check` is False it must succeed: what it said stands in the failure.
    """
    environment = {**os.environ, **variables}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={name: value for name, value in environment.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done
