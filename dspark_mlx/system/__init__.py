"""The boundary to the operating system: files, locks, processes, what the system refuses."""
