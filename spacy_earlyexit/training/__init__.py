"""What the configs name while training: checkpoint scores and the log."""
