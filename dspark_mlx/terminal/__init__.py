"""Code that the commands share: flags, exit statuses, and the display of drafts."""
