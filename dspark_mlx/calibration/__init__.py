"""Calibration of confidences (paper, section 3.2.1) and what it is judged by."""
