"""`python -m dlmbench`: the command line without an installation, where its packages are there."""

from dlmbench.cli.app import main

main()
