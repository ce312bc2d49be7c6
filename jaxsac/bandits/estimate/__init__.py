"""What is explored, and how far an estimate may be from the truth."""
