"""The process: an application behind uvicorn, which stops gracefully on SIGTERM and SIGINT."""

from __future__ import annotations

import threading
from types import FrameType

import uvicorn
from fastapi import FastAPI

from dlmbench.serve.worker import Worker

GRACE = 8.0  # seconds that rows under way have to finish once a server is to stop


class Server(uvicorn.Server):
    """Refuses what waits as soon as it is told to stop, finishes what is under way, then leaves."""

    def __init__(self, app: FastAPI, worker: Worker, host: str, port: int, grace: float = GRACE):
        super().__init__(
            uvicorn.Config(app, host, port, log_level="warning", timeout_graceful_shutdown=int(grace) + 1, ws="none")
        )
        self.worker, self.grace = worker, grace

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        threading.Thread(target=self.worker.stop, args=(self.grace,)).start()  # a signal's handler must not wait
        super().handle_exit(sig, frame)
