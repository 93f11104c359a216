"""`python -m qwenlab.cli`."""

from qwenlab.cli.main import main

main()
