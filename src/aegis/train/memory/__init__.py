"""What a training will need of memory, before it starts."""
