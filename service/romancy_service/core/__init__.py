"""The pure core: what a run is, how events change it, what a trigger makes of it. No I/O, clock or randomness."""
