"""What a config needs on devices that may be absent: memory, collectives and a lower bound of the step time."""
