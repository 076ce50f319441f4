"""Training drafters: conversations written by the target, and a drafter fitted to them."""
