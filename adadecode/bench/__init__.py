"""Speed on one machine: methods in turns, the parts of a round, and what is between them."""
