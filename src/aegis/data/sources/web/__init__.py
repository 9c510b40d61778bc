"""Pages of the web, collected as their owners allow: robots.txt, terms, reservations, pace."""
