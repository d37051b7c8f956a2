"""Finished pipelines get exits."""
