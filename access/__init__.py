"""Callers, keys and limits."""
