"""Documents in, scores at exit out. Knows no pipeline and no component."""
