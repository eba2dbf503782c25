"""Jobs whose images differ on purpose: X/Y/Z plots, prompt matrices, prompts from a file. From words to a `Plot`."""
