"""Why: what a run waits for or is blocked by, made of facts. Read by somebody at three in the morning, and by programs.

Each wait says what, since when, why, and what can be done. Each kind is made in one place.
"""
