"""Where new records come from: models that write, the web."""
