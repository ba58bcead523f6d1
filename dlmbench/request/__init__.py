"""What a run is asked to be: `RunSpec` from flags or YAML, `SweepSpec` as a list of them, `ResolvedRun` as it will
happen, and the key that names a finished run.

`run_spec` has the options, `resolved` what they mean here, `rules` the refusals, `key` the identity, `values` and
`options` the way from text to typed values.
"""

from dlmbench.request.key import canonical, digest, identity
from dlmbench.request.resolved import ResolvedRun
from dlmbench.request.run_spec import RunSpec
from dlmbench.request.sweep import SweepSpec, read_recipe

__all__ = ["ResolvedRun", "RunSpec", "SweepSpec", "canonical", "digest", "identity", "read_recipe"]
