"""The orchestrator: keeps every run's history and streams tasks to workers. ARCHITECTURE.md says how it is built."""
