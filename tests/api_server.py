"""Runs the API as a process, on a free port of this machine."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import yaml

ROOT = Path(__file__).parent.parent
START_S = 30


class Server:
    """`python -m serving` in a folder, until the block is left."""

    def __init__(self, folder, *, starter=None, registry=None, api_key=None, **settings):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        params["serve"] |= settings
        (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
        self._log = folder / "server.log"
        self.command = [sys.executable, "-m", "serving", "--params", "params.yaml", "--folder", "kept"]
        if starter is not None:
            self.command += ["--starter", str(starter)]
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "CRACKS"))}
        self.env |= {"PYTHONPATH": str(ROOT), "DVC_ROOT": str(folder), "MLFLOW_TRACKING_URI": registry or ""}
        if api_key is not None:
            self.env["CRACKS_API_KEY"] = api_key
        self.process = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.kill(signal.SIGTERM)

    def start(self):
        """Start the server; sets `url`."""
        self._log.unlink(missing_ok=True)
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.command, "--port", "0"], cwd=self.folder, env=self.env, stdout=log, stderr=log
            )
        while (started := re.search(r"The page is at (\S+)", self.log())) is None:
            assert self.process.poll() is None, self.log()
            time.sleep(0.02)
        self.url = started[1]

    def kill(self, with_signal=signal.SIGKILL):
        """Stop the server and wait for its end."""
        self.process.send_signal(with_signal)
        self.process.wait(timeout=30)

    def wait_until(self, holds, seconds=START_S):
        """Wait until `holds`, a function of a client, is true; return the seconds that it took."""
        started_s = time.monotonic()
        with self.client() as client:
            while time.monotonic() - started_s < seconds:
                assert self.process.poll() is None, self.log()
                try:
                    if holds(client):
                        return time.monotonic() - started_s
                except httpx.TransportError:
                    pass
                time.sleep(0.02)
        raise AssertionError(self.log())

    def wait_until_ready(self):
        """Wait for a model; return the seconds that it took."""
        return self.wait_until(lambda client: client.get("/readyz").status_code == 200)

    def client(self, **settings):
        """Return a client of this server."""
        return httpx.Client(base_url=self.url, timeout=60, **settings)

    def log(self):
        """Return the log of the server."""
        return self._log.read_text(encoding="utf-8")

    def memory_mb(self):
        """Return its resident memory."""
        import psutil

        return psutil.Process(self.process.pid).memory_info().rss / 1e6
