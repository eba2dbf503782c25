"""The web side: settings, queue, events, pictures, the pages and the APIs. Never imports torch."""
