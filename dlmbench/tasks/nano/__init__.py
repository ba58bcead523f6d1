"""The tasks of the nano models, made by our own generators: nano-gsm (word problems) and nano-code (functions).

`gsm`, `gsm_symbolic`, `code` and `programs` make single problems, `separation` decides what is held out, `mix` gives
the training stream, `build` re-makes the shipped sets in `data/` and the tokenizer. A model reads question or prompt
followed by the separator token, and writes the target followed by the end token.
"""
