"""Drafting: a model's reply, its tools and its wire. The front door is `agent.py`."""
