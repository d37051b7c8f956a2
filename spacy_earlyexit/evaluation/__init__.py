"""Scores of depth and cost, statistics, and the benchmark."""
