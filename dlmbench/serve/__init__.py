"""A decoder behind HTTP, so that other harnesses can evaluate it, and the client of servers, ours and others'.

The server (`app`, `schemas` and `worker`) needs the extra ``serve``. It is no product: one model, one method, one
process, on loopback unless told otherwise.
"""
