"""The store: all SQL. What is stored of runs, tasks, requests, sessions and replicas, alike on both databases."""
