"""The boundary to the operating system: files, locks, processes and the system's errors."""
