"""A plan as a picture: one self-contained page, a figure for a paper, a trace for a viewer."""
