"""Training of the shipped nano models: from text to bf16 weights on two CPU cores.

Read in this order: `recipe` (what is trained), `data` (text to rows of columns), `autoregressive`, `block_diffusion`
and `full_diffusion` (the objectives, each a way to lay out a row), `step` (the forward and the loss), `optim`, `loop`
(workers, checkpoints, exports), `fold` (warm starts without q/k norm), `evaluate` (held-out accuracy). `rcd` trains a
backbone beside a frozen reference; `mrp`, `adjust` and `learned_policy` train a head beside a frozen backbone, the last
two on rows that it answers itself (`rollout`). Apart from the checks in `dlmbench.verify`, nothing imports from here.
"""
