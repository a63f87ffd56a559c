"""Bench: what the whole of it does in a second, through real processes. `python -m tests.bench --help`."""
