"""Answers whose private thinking stays private."""
