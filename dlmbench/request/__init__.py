"""What a run is: `RunSpec` from flags or YAML, `SweepSpec` as a list of them, and the key that names a finished run.

`request` is one run, `sweep` many, `fields` the options, `checks` the refusals, `key` the identity.
"""

from dlmbench.request.key import canonical, digest, identity
from dlmbench.request.run_spec import Checked, RunSpec
from dlmbench.request.sweep import SweepSpec, read_recipe

__all__ = ["Checked", "RunSpec", "SweepSpec", "canonical", "digest", "identity", "read_recipe"]
