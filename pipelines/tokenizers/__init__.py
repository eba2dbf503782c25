"""Vocabularies that are part of the program, and the tokenizers made from them: nothing is downloaded for them."""
