"""Pages for people, on top of the runs' records and of the server."""
