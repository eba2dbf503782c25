"""Our own optional features, on the public API alone."""
