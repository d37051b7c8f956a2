"""What is faster on which processor: every private or version-bound call of torch and libc."""
