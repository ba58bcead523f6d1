"""The two tasks of the nano models, made by our own generators: nano-gsm (word problems) and nano-code (functions).

`gsm`, `gsm_symbolic` and `code` make single problems, `separation` decides what is held out, `mix` gives the training
stream, `build` re-makes the shipped sets in `data/` and the tokenizer. A model reads question or prompt followed by
the separator token, and writes the target followed by the end token.
"""

from dlmbench.tasks.nano.mix import SEPARATOR, stream

__all__ = ["SEPARATOR", "stream"]
