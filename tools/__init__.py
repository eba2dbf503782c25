"""Programs for maintainers; nothing of the application imports them."""
