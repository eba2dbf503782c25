"""What guides a picture beside its prompt: other pictures (ControlNets, adapters, styles), and prompts for parts."""
