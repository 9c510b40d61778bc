"""Deciding, and knowing how well."""
