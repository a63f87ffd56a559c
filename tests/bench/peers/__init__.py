"""Peers: the order saga on ours and on other systems, one after the other. `python -m tests.bench.peers --help`."""
