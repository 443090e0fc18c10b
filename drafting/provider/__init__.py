"""A model behind OpenAI's Chat Completions: its requests, its replies and its errors."""
