"""What a config needs on devices that need not be there: memory, collectives and the floor of a step's time."""
