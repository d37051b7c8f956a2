"""Operating points: recording, measuring and search."""
