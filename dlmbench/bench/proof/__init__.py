"""Everything that is to be proved on a GPU, as one command: ``python -m dlmbench.bench.proof --out DIR``.

Stages run in a fixed order inside one budget of seconds, each in its own box of time. A stage writes its record as soon
as it ends, one that fails is a result, and one that hangs or dies takes no other with it: stages run in a worker
process, which the supervisor kills and replaces. Started again, the proof goes on where it was.

    stage.py       what a stage is, what it is given and what it leaves behind
    supervisor.py  the order, the boxes of time, the worker's life; imports nothing heavy
    worker.py      the process that runs stages one after another
    device.py, correctness.py, speed.py   the stages
    summary.py     the goals, and the screen that ends a proof

Needs torch, transformers, safetensors, numpy, typer, rich and pyyaml. ``--device cpu --shapes tiny`` is the rehearsal:
the same code on small shapes, with a tape of operators (`dlmbench.verify.tape`) in the place of CUDA graphs.
"""
