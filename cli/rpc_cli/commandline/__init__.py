"""The arguments of the command: the parser, groups of options, and the types of their values."""
