"""Runs: what one leaves behind (`record`, `folder`, `aggregate`), who makes it (`runner`, `local`, `ray`, `sweep`)."""

from dlmbench.runs.folder import RunFolder, find_runs, prompt_hash
from dlmbench.runs.record import Manifest, Metrics, Sample, Trace

__all__ = ["Manifest", "Metrics", "RunFolder", "Sample", "Trace", "find_runs", "prompt_hash"]
