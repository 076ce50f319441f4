"""DSpine: a causal block whose rows hear from the row before, and a second reading of each slot."""
