"""How busy a GPU is over time, by `nvidia-smi`."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Self

PERIOD_MS = 200


class Watch:
    """Samples (seconds since the start, utilisation in percent) while it is open; none without `nvidia-smi`."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float]] = []
        self._process: subprocess.Popen[str] | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        if shutil.which("nvidia-smi"):
            command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms"]
            self._process = subprocess.Popen([*command, str(PERIOD_MS)], stdout=subprocess.PIPE, text=True)
            self._reader.start()
        return self

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        began = time.monotonic()
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):  # "[N/A]"
                self.samples.append((time.monotonic() - began, float(line)))

    def __exit__(self, *error: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._reader.join()


def plot(samples: list[tuple[float, float]], path: Path, title: str) -> None:
    """Draw utilisation over time as SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.4), layout="constrained")
    axes = figure.add_subplot()
    axes.fill_between([at for at, _ in samples], [busy for _, busy in samples], step="post", alpha=0.6)
    axes.set(title=f"{title}: use of the GPU", xlabel="seconds", ylabel="%", ylim=(0, 100))
    figure.savefig(path, format="svg", metadata={"Date": None})
