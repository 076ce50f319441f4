"""Makes and stores the texts that a drafter is trained on, which the target writes itself."""
