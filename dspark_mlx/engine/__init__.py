"""The paper's round: draft, schedule, verify, commit (section 3), and the requests that run it."""
