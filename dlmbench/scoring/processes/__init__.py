"""The programs that run inside the sandbox's own interpreters.

They are started as plain scripts by an isolated interpreter (`-I -S`), so they import the standard library and each
other, never dlmbench. `wire` alone is also imported by the harness, to speak with them.
"""
