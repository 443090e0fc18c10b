"""What a model is sent of a thread."""
