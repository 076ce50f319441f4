"""Drafters, one file or folder per drafting method; each implements `base.Drafter`."""
