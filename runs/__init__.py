"""Runs: the log of each one, its readers, and the registry of those in progress."""
