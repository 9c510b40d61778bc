"""One protocol to judge and to think, and the engines behind it."""
