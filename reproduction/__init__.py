"""The paper's tables, reproduced: which runs there are, what they found, and how much of a difference is noise."""
