"""Score thinking records without a model: how sound, right, deep, well-formed, and how varied."""
