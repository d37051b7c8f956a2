"""Pictures: terminal, page, plots."""
