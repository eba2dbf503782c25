"""From picture to picture: what a pass starts from, what it leaves alone, and what is done to its result."""
