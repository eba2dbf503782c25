"""The web side: settings, queue, events, pictures, the pages and the APIs. Never imports torch."""

VERSION = "0.1.0"
