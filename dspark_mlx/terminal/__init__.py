"""What the commands share: flags, errors, progress, and how drafts are painted."""
