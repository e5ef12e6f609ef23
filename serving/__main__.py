"""Serve the API and its page.

    python -m serving --params params.yaml [--host 127.0.0.1] [--port 8000]

The server answers with the version under alias `production` in the registry that MLFLOW_TRACKING_URI names, else with
the challenger, else with the starter model (--starter); never with a demo. If CRACKS_API_KEY is set, every request to
/v1 needs that key. CRACKS_ALLOWED_HOSTS has the names under which the server is reached beside those of this machine,
such as that of a proxy, separated by spaces.
"""

import logging
import os
import socket
from datetime import UTC, datetime
from pathlib import Path

import uvicorn

from pipeline.errors import CracksError
from pipeline.monitoring.prediction_log import PredictionLog
from pipeline.params import load_params
from pipeline.project import LOG_FOLDER, project_root
from pipeline.stage import run_main, stage_parser
from serving.allowed_sites import ALLOWED_HOSTS
from serving.app import create_app
from serving.connections import ACCEPTED_AT_ONCE, WAIT_S, GuardedProtocol, prepare_process
from serving.current_model import ModelHolder
from serving.wanted_version import Registry

API_KEY = "CRACKS_API_KEY"
STOP_S = 20  # for running requests to end when the server is stopped
SECURITY_HEADERS = {
    # The page needs its own files, images that the browser makes from the user's photos, and the API.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def main() -> None:
    """Run the server until it is stopped."""
    parser = stage_parser(__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all interfaces")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument(
        "--folder", type=Path, default=Path("data/serving"), help="keeps the last good model; one folder per server"
    )
    parser.add_argument("--starter", type=Path, help="folder of a served model to use until one is registered")
    args = parser.parse_args()
    params = load_params(args.params)
    logging.getLogger("serving").setLevel(logging.INFO)
    holder = ModelHolder(
        Registry(params.register_as.name),
        args.folder / "model",
        params.serve.poll_s,
        params.map,
        args.starter,
        lambda: datetime.now(UTC),
    )
    app = create_app(
        params.serve,
        holder,
        PredictionLog(project_root() / LOG_FOLDER, params.monitor.log_max_mb),
        os.environ.get(API_KEY) or None,
        os.environ.get(ALLOWED_HOSTS, "").split(),
    )
    listening = _listen(args.host, args.port)
    host, port = listening.getsockname()[:2]
    logging.getLogger("serving").info("The page is at http://%s:%d", host, port)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, http=GuardedProtocol, ws="none",
        headers=list(SECURITY_HEADERS.items()), backlog=ACCEPTED_AT_ONCE, timeout_keep_alive=int(WAIT_S),
        timeout_graceful_shutdown=STOP_S,
    )  # fmt: skip
    prepare_process()
    uvicorn.Server(config).run([listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        listening = socket.create_server((host, port))
        # asyncio sets this only on sockets that it opens; without it each answer waits 40 ms for an acknowledgement
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except OSError as error:
        reason = (error.strerror or str(error)).split(" (")[0]  # the rest repeats the address
        raise CracksError(
            f"The server cannot listen on {host}, port {port}: {reason}. Choose another: --host, --port."
        ) from None


if __name__ == "__main__":
    run_main(main)
