"""What must survive: artifact folders written whole or not at all, and the record of a session."""
