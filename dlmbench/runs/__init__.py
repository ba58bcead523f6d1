"""Run folders: what a run wrote, and how a killed one goes on. `folder` is the files, `metrics` the aggregates."""

from dlmbench.runs.folder import RunFolder, find_runs, prompt_hash

__all__ = ["RunFolder", "find_runs", "prompt_hash"]
