"""Boards as data, the tool chain that turns a design into a bitstream, and the link to a board."""
