"""open_clip's own trainer, in a process of its own, told nothing of the number of samples."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from demo.models import make_open_clip


def test_an_epoch_of_open_clip_train(webdataset_shards: Path, tmp_path: Path) -> None:
    model = make_open_clip(tmp_path / "model", seed=0)
    options = {
        "train-data": str(webdataset_shards / "train" / "pub11-train-{0000..0001}.tar"),
        "dataset-type": "webdataset",
        "model": f"local-dir:{model}",
        "batch-size": "4",
        "epochs": "1",
        "workers": "1",
        "warmup": "1",
        "lr": "1e-3",
        "log-every-n-steps": "1",
        "device": "cpu",
        "logs": str(tmp_path / "logs"),
        "name": "run",
    }
    said = [word for name, value in options.items() for word in (f"--{name}", value)]
    done = subprocess.run(
        [sys.executable, "-m", "open_clip_train.main", *said], capture_output=True, text=True, timeout=240, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    samples = sum(json.loads((webdataset_shards / "train" / "sizes.json").read_text()).values())
    log = (tmp_path / "logs" / "run" / "out.log").read_text()
    steps = [line for line in log.splitlines() if "Train Epoch: 0" in line]
    assert steps, log[-2000:]
    assert f"/{-(-samples // 4) * 4} (" in steps[-1]
    assert (tmp_path / "logs" / "run" / "checkpoints" / "epoch_1.pt").is_file()
