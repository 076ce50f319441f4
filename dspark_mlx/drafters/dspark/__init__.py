"""DSpark's drafter and DFlash's: a parallel backbone and an optional sequential head."""
