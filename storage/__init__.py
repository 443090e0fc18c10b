"""PostgreSQL: the writer, the statements, the journal. The front door is `store.py`."""
