"""Servers in processes of their own, for tests of what goes over HTTP."""

import contextlib
import signal
import socket
import subprocess
import sys
import time

import httpx2 as httpx

START = 180  # seconds until a server must answer


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def process(command, port, answers="/health"):
    """The process and the URL of a server that this command starts; stopped by SIGTERM in the end."""
    running = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + START
        while True:
            with contextlib.suppress(httpx.TransportError):
                httpx.get(url + answers, trust_env=False)
                break
            assert running.poll() is None, running.stderr.read().decode()
            assert time.monotonic() < until, "the server did not begin to answer"
            time.sleep(0.1)
        yield running, url
    finally:
        if running.poll() is None:
            running.send_signal(signal.SIGTERM)
        try:
            running.wait(20)
        except subprocess.TimeoutExpired:
            running.kill()
            raise


def dlmbench(*options):
    """`process` of our own server on a CPU."""
    port = free_port()
    own = ["--device", "cpu", "--port", str(port)]
    return process([sys.executable, "-m", "dlmbench", "serve", *map(str, options), *own], port)
