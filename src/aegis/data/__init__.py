"""Records in, records out: load, generate, clean, split."""
