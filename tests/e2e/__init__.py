"""What a user sees and does: the real application in a process of its own, and a real browser."""
