"""Training of the shipped nano models: from text to bf16 weights on two CPU cores.

Read in this order: `recipe` (what is trained), `data` (text to rows of columns), `autoregressive` and
`block_diffusion` (the two objectives, each a way to lay out a row), `step` (the forward and the loss), `optim`, `loop`
(workers, checkpoints, exports), `evaluate` (held-out accuracy). Everything else imports nothing from here.
"""
