"""Versions of documents, and edits of them."""
