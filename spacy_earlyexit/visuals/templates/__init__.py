"""Jinja2 templates of the pictures, as package data."""
