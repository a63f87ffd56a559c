"""Migrations: one history for both databases, forward and additive, so that replicas of two versions get along."""
