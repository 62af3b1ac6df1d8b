"""``python -m server.cli``: the command ``moergate`` without its script."""

from server.cli.main import main

main()
