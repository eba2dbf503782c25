"""Text in, pictures out. Knows nothing of gradio, HTTP or extensions. Importing it does not import torch."""
