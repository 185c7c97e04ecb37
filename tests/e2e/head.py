"""Ray's head node as a process of its own, with token authentication on."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

BIN = Path(sys.executable).parent


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Head:
    """Ray's head node: the environment that reaches it, and the folder its processes carry in their command lines."""

    env: dict[str, str]
    folder: Path
    address: str

    def add_node(self, cpus: int) -> None:
        """One more Ray node on this machine."""
        command = [str(BIN / "ray"), "start", f"--address={self.address}", f"--num-cpus={cpus}"]
        subprocess.run(command, env=self.env, check=True, capture_output=True)

    def stop(self) -> None:
        """End every process of this cluster, and only those."""
        mine = [p for p in psutil.process_iter(["cmdline"]) if str(self.folder) in " ".join(p.info["cmdline"] or ())]
        for process in [*mine, *(child for p in mine for child in _children(p))]:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def start_head(folder: Path, cpus: int = 2) -> Head:
    """`ray start --head` as docs/cluster.md gives it, on free ports."""
    port, dashboard = free_port(), free_port()
    env = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    env.pop("RAY_ADDRESS", None)
    command = [str(BIN / "ray"), "start", "--head", f"--port={port}", f"--dashboard-port={dashboard}"]
    # on its usual port the agent, which takes jobs, stays out of reach beside another cluster of this machine
    command += [f"--num-cpus={cpus}", f"--temp-dir={folder}", f"--dashboard-agent-listen-port={free_port()}"]
    subprocess.run(command, env=env, check=True, capture_output=True)
    address = f"127.0.0.1:{port}"
    reach = {"RAY_ADDRESS": address, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    return Head({**env, **reach}, folder, address)
