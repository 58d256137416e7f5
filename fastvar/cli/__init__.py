"""The parts of the command line: commands for files, text on a screen, and how a command ends."""
