"""Drafters: one file or folder a method, behind `base.Drafter`."""
