"""`# like this`: what is between a # and the end of its line is not part of the prompt."""


def uncommented(prompt: str) -> str:
    """A line that is only a comment goes whole."""
    if "#" not in prompt:
        return prompt
    lines = (line.partition("#") for line in prompt.split("\n"))
    return "\n".join(text for text, mark, _ in lines if text or not mark)
