"""Threads: the history that a person reads and the memory that the agent has, side by side."""
